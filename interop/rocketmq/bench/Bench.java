import java.time.Duration;
import java.util.Arrays;
import java.util.Collections;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.PushConsumer;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;

/**
 * One server, measured through the official Java client: ENDPOINT SECONDS PHASE... What it
 * finds it prints as lines `name value`.
 */
public final class Bench {
    static final String TOPIC = "bench-normal";
    static final String LATER = "bench-delay";
    static final int BYTES = 1024;
    /** Sends that wait for their answers at a time, where many do. */
    static final int TOGETHER = 256;
    static final int RECEIVERS = 8;
    static final int DELAYS_PER_SECOND = 1000;
    static final long DELAY_MS = 3000;

    static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    static ClientConfiguration configuration;
    static long seconds;

    public static void main(String[] args) throws Exception {
        configuration = ClientConfiguration.newBuilder().setEndpoints(args[0]).enableSsl(false)
            .setRequestTimeout(Duration.ofSeconds(10)).build();
        seconds = Long.parseLong(args[1]);
        int code = 0;
        try {
            for (String phase : Arrays.copyOfRange(args, 2, args.length)) {
                switch (phase) {
                    case "send" -> send();
                    case "receive" -> receive();
                    case "delay" -> delay();
                    default -> throw new IllegalArgumentException(phase);
                }
            }
        } catch (Throwable error) {
            error.printStackTrace(System.out);
            code = 1;
        }
        System.out.flush();
        // What the client leaves running does not matter any more.
        Runtime.getRuntime().halt(code);
    }

    static void say(String name, double value) {
        System.out.println(name + " " + value);
    }

    /** Times in nanoseconds, as many as there is room for. */
    static final class Times {
        private final long[] nanos = new long[4_000_000];
        private final AtomicInteger count = new AtomicInteger();

        void add(long time) {
            int at = count.getAndIncrement();
            if (at < nanos.length) {
                nanos[at] = time;
            }
        }

        int count() {
            return Math.min(count.get(), nanos.length);
        }

        void say(String name) {
            long[] sorted = Arrays.copyOf(nanos, count());
            Arrays.sort(sorted);
            if (sorted.length == 0) {
                throw new IllegalStateException(name + ": nothing was measured");
            }
            Bench.say(name + "_p50_ms", sorted[sorted.length / 2] / 1e6);
            Bench.say(name + "_p99_ms", sorted[(int) (sorted.length * 0.99)] / 1e6);
            Bench.say(name + "_max_ms", sorted[sorted.length - 1] / 1e6);
        }
    }

    static MessageBuilder message(String topic) {
        return PROVIDER.newMessageBuilder().setTopic(topic).setBody(new byte[BYTES]);
    }

    static Producer producer(String topic) throws Exception {
        return PROVIDER.newProducerBuilder().setClientConfiguration(configuration)
            .setTopics(topic).build();
    }

    static void send() throws Exception {
        Message message = message(TOPIC).build();
        try (Producer producer = producer(TOPIC)) {
            together(producer, message, Math.max(3, seconds / 3), new Times());
            Times alone = new Times();
            long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
            for (long now = System.nanoTime(); now < end;) {
                producer.send(message);
                long then = System.nanoTime();
                alone.add(then - now);
                now = then;
            }
            say("send_alone_per_s", (double) alone.count() / seconds);
            alone.say("send_alone");
            Times together = new Times();
            double took = together(producer, message, seconds, together);
            say("send_together_per_s", together.count() / took);
            together.say("send_together");
        }
    }

    /** Keeps so many sends on their way; how long that went, in seconds. */
    static double together(Producer producer, Message message, long seconds, Times times)
        throws Exception {
        Semaphore room = new Semaphore(TOGETHER);
        AtomicInteger failed = new AtomicInteger();
        long began = System.nanoTime();
        long end = began + TimeUnit.SECONDS.toNanos(seconds);
        for (long now = began; now < end; now = System.nanoTime()) {
            room.acquire();
            long sent = System.nanoTime();
            producer.sendAsync(message).whenComplete((receipt, error) -> {
                if (error == null) {
                    times.add(System.nanoTime() - sent);
                } else if (failed.getAndIncrement() == 0) {
                    System.out.println("a send has failed: " + error);
                }
                room.release();
            });
        }
        if (!room.tryAcquire(TOGETHER, 60, TimeUnit.SECONDS)) {
            throw new IllegalStateException("sends are not answered");
        }
        if (failed.get() > 0) {
            throw new IllegalStateException(failed + " sends have failed");
        }
        return (System.nanoTime() - began) / 1e9;
    }

    static SimpleConsumer consumer() throws Exception {
        return PROVIDER.newSimpleConsumerBuilder().setClientConfiguration(configuration)
            .setConsumerGroup("bench-group").setAwaitDuration(Duration.ofSeconds(1))
            .setSubscriptionExpressions(Collections.singletonMap(TOPIC, FilterExpression.SUB_ALL))
            .build();
    }

    /** Receives and acknowledges what was sent, for so long or as far as there is any. */
    static void receive() throws Exception {
        AtomicLong acked = new AtomicLong();
        AtomicLong last = new AtomicLong();
        AtomicInteger failed = new AtomicInteger();
        try (SimpleConsumer consumer = consumer()) {
            CountDownLatch done = new CountDownLatch(RECEIVERS);
            long began = System.nanoTime();
            long end = began + TimeUnit.SECONDS.toNanos(seconds);
            for (int n = 0; n < RECEIVERS; n++) {
                new Thread(() -> {
                    int empty = 0;
                    while (System.nanoTime() < end && empty < 3) {
                        try {
                            int before = failed.get();
                            var views = consumer.receive(32, Duration.ofSeconds(60));
                            empty = views.isEmpty() ? empty + 1 : 0;
                            CountDownLatch acks = new CountDownLatch(views.size());
                            for (MessageView view : views) {
                                consumer.ackAsync(view).whenComplete((nothing, error) -> {
                                    if (error == null) {
                                        acked.incrementAndGet();
                                        last.set(System.nanoTime());
                                    } else {
                                        failed.incrementAndGet();
                                    }
                                    acks.countDown();
                                });
                            }
                            acks.await(30, TimeUnit.SECONDS);
                            if (failed.get() > before) {
                                System.out.println("an ack has failed");
                            }
                        } catch (Exception error) {
                            System.out.println("a receive has failed: " + error);
                            failed.incrementAndGet();
                            empty++;
                        }
                    }
                    done.countDown();
                }).start();
            }
            if (!done.await(seconds + 60, TimeUnit.SECONDS)) {
                throw new IllegalStateException("receives are not answered");
            }
            say("received", acked.get());
            say("receive_failed", failed.get());
            say("receive_per_s", acked.get() / ((last.get() - began) / 1e9));
        }
    }

    /** How late messages are that are due at some time. */
    static void delay() throws Exception {
        Times late = new Times();
        AtomicInteger early = new AtomicInteger();
        Set<String> got = ConcurrentHashMap.newKeySet();
        AtomicInteger failed = new AtomicInteger();
        long count = DELAYS_PER_SECOND * seconds;
        try (Producer producer = producer(LATER)) {
            PushConsumer consumer = PROVIDER.newPushConsumerBuilder()
                .setClientConfiguration(configuration).setConsumerGroup("bench-later")
                .setSubscriptionExpressions(
                    Collections.singletonMap(LATER, FilterExpression.SUB_ALL))
                .setMessageListener(view -> {
                    long now = System.currentTimeMillis();
                    if (got.add(view.getMessageId().toString())) {
                        long by = now - view.getDeliveryTimestamp().orElseThrow();
                        early.addAndGet(by < 0 ? 1 : 0);
                        late.add(TimeUnit.MILLISECONDS.toNanos(by));
                    }
                    return ConsumeResult.SUCCESS;
                }).build();
            // Its standing receives begin a second after it, and come to rest.
            Thread.sleep(5000);
            Semaphore room = new Semaphore(TOGETHER * 4);
            long began = System.nanoTime();
            for (long n = 0; n < count; n++) {
                long at = began + n * TimeUnit.SECONDS.toNanos(1) / DELAYS_PER_SECOND;
                for (long left = at - System.nanoTime(); left > 0; left = at - System.nanoTime()) {
                    TimeUnit.NANOSECONDS.sleep(left);
                }
                room.acquire();
                Message message = message(LATER)
                    .setDeliveryTimestamp(System.currentTimeMillis() + DELAY_MS).build();
                producer.sendAsync(message).whenComplete((receipt, error) -> {
                    if (error != null && failed.getAndIncrement() == 0) {
                        System.out.println("a send has failed: " + error);
                    }
                    room.release();
                });
            }
            double took = (System.nanoTime() - began) / 1e9;
            room.acquire(TOGETHER * 4);
            long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            while (got.size() < count - failed.get() && System.nanoTime() < end) {
                Thread.sleep(50);
            }
            say("delay_sent_per_s", count / took);
            say("delay_send_failed", failed.get());
            say("delay_missing", count - failed.get() - got.size());
            say("delay_early", early.get());
            late.say("delay_late");
        }
    }
}
