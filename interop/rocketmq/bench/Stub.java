import apache.rocketmq.v2.AckMessageRequest;
import apache.rocketmq.v2.AckMessageResponse;
import apache.rocketmq.v2.AckMessageResultEntry;
import apache.rocketmq.v2.Broker;
import apache.rocketmq.v2.Code;
import apache.rocketmq.v2.Digest;
import apache.rocketmq.v2.DigestType;
import apache.rocketmq.v2.Encoding;
import apache.rocketmq.v2.ExponentialBackoff;
import apache.rocketmq.v2.HeartbeatRequest;
import apache.rocketmq.v2.HeartbeatResponse;
import apache.rocketmq.v2.Message;
import apache.rocketmq.v2.MessageQueue;
import apache.rocketmq.v2.MessageType;
import apache.rocketmq.v2.MessagingServiceGrpc;
import apache.rocketmq.v2.Metric;
import apache.rocketmq.v2.NotifyClientTerminationRequest;
import apache.rocketmq.v2.NotifyClientTerminationResponse;
import apache.rocketmq.v2.Permission;
import apache.rocketmq.v2.QueryRouteRequest;
import apache.rocketmq.v2.QueryRouteResponse;
import apache.rocketmq.v2.ReceiveMessageRequest;
import apache.rocketmq.v2.ReceiveMessageResponse;
import apache.rocketmq.v2.RetryPolicy;
import apache.rocketmq.v2.SendMessageRequest;
import apache.rocketmq.v2.SendMessageResponse;
import apache.rocketmq.v2.SendResultEntry;
import apache.rocketmq.v2.Settings;
import apache.rocketmq.v2.Status;
import apache.rocketmq.v2.SystemProperties;
import apache.rocketmq.v2.TelemetryCommand;
import com.google.protobuf.ByteString;
import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.StreamObserver;
import java.util.concurrent.atomic.AtomicLong;
import java.util.zip.CRC32;

/**
 * Answers every call at once and keeps nothing: what the client alone can do. On the port
 * that it is told.
 */
public final class Stub extends MessagingServiceGrpc.MessagingServiceImplBase {
    static final int QUEUES = 8;
    static final Status OK = Status.newBuilder().setCode(Code.OK).setMessage("OK").build();
    static final ByteString BODY = ByteString.copyFrom(new byte[1024]);
    static final Digest DIGEST = Digest.newBuilder().setType(DigestType.CRC32).setChecksum(crc32())
        .build();
    final AtomicLong count = new AtomicLong();

    public static void main(String[] args) throws Exception {
        NettyServerBuilder.forPort(Integer.parseInt(args[0])).addService(new Stub()).build()
            .start().awaitTermination();
    }

    static String crc32() {
        CRC32 crc = new CRC32();
        crc.update(BODY.toByteArray());
        return Long.toHexString(crc.getValue()).toUpperCase();
    }

    static <T> void answer(StreamObserver<T> to, T answer) {
        to.onNext(answer);
        to.onCompleted();
    }

    @Override
    public void queryRoute(QueryRouteRequest request, StreamObserver<QueryRouteResponse> to) {
        QueryRouteResponse.Builder route = QueryRouteResponse.newBuilder().setStatus(OK);
        Broker broker =
            Broker.newBuilder().setName("stub").setEndpoints(request.getEndpoints()).build();
        for (int id = 0; id < QUEUES; id++) {
            route.addMessageQueues(MessageQueue.newBuilder().setTopic(request.getTopic()).setId(id)
                .setPermission(Permission.READ_WRITE).setBroker(broker)
                .addAcceptMessageTypes(MessageType.NORMAL));
        }
        answer(to, route.build());
    }

    @Override
    public StreamObserver<TelemetryCommand> telemetry(StreamObserver<TelemetryCommand> to) {
        return new StreamObserver<>() {
            @Override
            public void onNext(TelemetryCommand said) {
                if (said.hasSettings()) {
                    Settings settings = settings(said.getSettings());
                    to.onNext(TelemetryCommand.newBuilder().setStatus(OK).setSettings(settings)
                        .build());
                }
            }

            @Override
            public void onError(Throwable error) {
            }

            @Override
            public void onCompleted() {
                to.onCompleted();
            }
        };
    }

    static Settings settings(Settings said) {
        Duration second = Duration.newBuilder().setSeconds(1).build();
        ExponentialBackoff backoff = ExponentialBackoff.newBuilder().setInitial(second)
            .setMax(second).setMultiplier(1).build();
        Settings.Builder settings = said.toBuilder().setMetric(Metric.getDefaultInstance())
            .setBackoffPolicy(
                RetryPolicy.newBuilder().setMaxAttempts(3).setExponentialBackoff(backoff));
        if (said.hasPublishing()) {
            settings.getPublishingBuilder().setMaxBodySize(4 << 20).setValidateMessageType(true);
        } else {
            settings.getSubscriptionBuilder().setReceiveBatchSize(32)
                .setLongPollingTimeout(Duration.newBuilder().setSeconds(20));
        }
        return settings.build();
    }

    @Override
    public void heartbeat(HeartbeatRequest request, StreamObserver<HeartbeatResponse> to) {
        answer(to, HeartbeatResponse.newBuilder().setStatus(OK).build());
    }

    @Override
    public void sendMessage(SendMessageRequest request, StreamObserver<SendMessageResponse> to) {
        SendMessageResponse.Builder sent = SendMessageResponse.newBuilder().setStatus(OK);
        for (Message message : request.getMessagesList()) {
            sent.addEntries(SendResultEntry.newBuilder().setStatus(OK)
                .setMessageId(message.getSystemProperties().getMessageId()));
        }
        answer(to, sent.build());
    }

    @Override
    public void receiveMessage(ReceiveMessageRequest request,
        StreamObserver<ReceiveMessageResponse> to) {
        to.onNext(ReceiveMessageResponse.newBuilder().setStatus(OK).build());
        Timestamp now = Timestamp.newBuilder().setSeconds(System.currentTimeMillis() / 1000)
            .build();
        for (int n = 0; n < request.getBatchSize(); n++) {
            long number = count.incrementAndGet();
            SystemProperties system = SystemProperties.newBuilder()
                .setMessageId(String.format("01%032X", number)).setReceiptHandle("r-" + number)
                .setMessageType(MessageType.NORMAL).setBodyEncoding(Encoding.IDENTITY)
                .setBodyDigest(DIGEST).setBornTimestamp(now).setBornHost("stub")
                .setStoreTimestamp(now).setStoreHost("stub").setDeliveryAttempt(1).build();
            Message message = Message.newBuilder().setTopic(request.getMessageQueue().getTopic())
                .setSystemProperties(system).setBody(BODY).build();
            to.onNext(ReceiveMessageResponse.newBuilder().setMessage(message).build());
        }
        to.onNext(ReceiveMessageResponse.newBuilder().setDeliveryTimestamp(now).build());
        to.onCompleted();
    }

    @Override
    public void ackMessage(AckMessageRequest request, StreamObserver<AckMessageResponse> to) {
        AckMessageResponse.Builder done = AckMessageResponse.newBuilder().setStatus(OK);
        request.getEntriesList().forEach(entry -> done.addEntries(AckMessageResultEntry.newBuilder()
            .setStatus(OK).setMessageId(entry.getMessageId())
            .setReceiptHandle(entry.getReceiptHandle())));
        answer(to, done.build());
    }

    @Override
    public void notifyClientTermination(NotifyClientTerminationRequest request,
        StreamObserver<NotifyClientTerminationResponse> to) {
        answer(to, NotifyClientTerminationResponse.newBuilder().setStatus(OK).build());
    }
}
