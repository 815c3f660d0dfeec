import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientConfigurationBuilder;
import org.apache.rocketmq.client.apis.ClientException;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.SessionCredentialsProvider;
import org.apache.rocketmq.client.apis.StaticSessionCredentialsProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.MessageListener;
import org.apache.rocketmq.client.apis.consumer.PushConsumer;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.SendReceipt;
import org.apache.rocketmq.client.apis.producer.Transaction;
import org.apache.rocketmq.client.apis.producer.TransactionChecker;
import org.apache.rocketmq.client.apis.producer.TransactionResolution;

/** The official Java client against a node: one scenario a run. */
public final class Interop {
    private static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();
    private static String endpoint;
    private static SessionCredentialsProvider signer;

    public static void main(String[] args) {
        endpoint = args[0];
        int code = 0;
        try {
            run(args);
            System.out.println("done");
        } catch (Throwable error) {
            error.printStackTrace(System.out);
            code = 1;
        }
        // What the client leaves running does not matter any more.
        Runtime.getRuntime().halt(code);
    }

    static void run(String[] args) throws Exception {
        switch (args[1]) {
            case "simple" -> simple();
            case "push" -> push();
            case "filter" -> filter();
            case "delay" -> delay();
            case "order" -> order();
            case "dead" -> dead();
            case "extend" -> extend();
            case "refused" -> refused();
            case "transact" -> transact();
            case "prepareAndDie" -> prepareAndDie();
            case "access" -> access(args[2], args[3]);
            case "crash" -> crash();
            default -> throw new IllegalArgumentException(args[1]);
        }
    }

    static ClientConfiguration configuration() {
        // TLS stays as it is by default: on.
        ClientConfigurationBuilder builder = ClientConfiguration.newBuilder().setEndpoints(endpoint);
        return (signer == null ? builder : builder.setCredentialProvider(signer)).build();
    }

    static Producer producer(String... topics) throws ClientException {
        return PROVIDER.newProducerBuilder().setClientConfiguration(configuration())
            .setTopics(topics).build();
    }

    static SimpleConsumer simpleConsumer(String group, String topic) throws ClientException {
        return PROVIDER.newSimpleConsumerBuilder().setClientConfiguration(configuration())
            .setConsumerGroup(group).setAwaitDuration(Duration.ofSeconds(3))
            .setSubscriptionExpressions(Collections.singletonMap(topic, FilterExpression.SUB_ALL))
            .build();
    }

    static PushConsumer pushConsumer(String group, String topic, FilterExpression filter,
        MessageListener listener) throws ClientException {
        return PROVIDER.newPushConsumerBuilder().setClientConfiguration(configuration())
            .setConsumerGroup(group)
            .setSubscriptionExpressions(Collections.singletonMap(topic, filter))
            .setMessageListener(listener).build();
    }

    static MessageBuilder message(String topic, String body) {
        return PROVIDER.newMessageBuilder().setTopic(topic)
            .setBody(body.getBytes(StandardCharsets.UTF_8));
    }

    static String body(MessageView view) {
        return StandardCharsets.UTF_8.decode(view.getBody().duplicate()).toString();
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            System.out.println("NOT SO: " + what);
            Runtime.getRuntime().halt(1);
        }
    }

    static void same(Object expected, Object found, String what) {
        check(expected.equals(found), what + ": " + found + " instead of " + expected);
    }

    static void until(String what, BooleanSupplier isSo) throws InterruptedException {
        long until = System.nanoTime() + Duration.ofSeconds(60).toNanos();
        while (!isSo.getAsBoolean()) {
            check(System.nanoTime() < until, "it never came to that: " + what);
            Thread.sleep(20);
        }
    }

    /** Receives until so many have come, and acknowledges them. */
    static List<MessageView> receive(SimpleConsumer consumer, int count) throws ClientException {
        List<MessageView> views = new ArrayList<>();
        for (int empty = 0; views.size() < count && empty < 10;) {
            List<MessageView> some = consumer.receive(32, Duration.ofSeconds(30));
            empty = some.isEmpty() ? empty + 1 : 0;
            for (MessageView view : some) {
                views.add(view);
                consumer.ack(view);
            }
        }
        same(count, views.size(), "messages received");
        return views;
    }

    static void simple() throws Exception {
        String topic = "java-simple";
        try (Producer producer = producer(topic);
            SimpleConsumer consumer = simpleConsumer("java-simple-group", topic)) {
            Map<String, String> sent = new LinkedHashMap<>();
            for (int n = 0; n < 50; n++) {
                Message message = message(topic, "body " + n).setTag("tag").setKeys("key-" + n, "k")
                    .addProperty("n", "" + n).build();
                sent.put(producer.send(message).getMessageId().toString(), "" + n);
            }
            List<CompletableFuture<SendReceipt>> futures = new ArrayList<>();
            for (int n = 50; n < 100; n++) {
                Message message = message(topic, "body " + n).setTag("tag").setKeys("key-" + n, "k")
                    .addProperty("n", "" + n).build();
                futures.add(producer.sendAsync(message));
            }
            for (int n = 0; n < 50; n++) {
                sent.put(futures.get(n).get().getMessageId().toString(), "" + (n + 50));
            }
            for (MessageView view : receive(consumer, 100)) {
                String n = sent.remove(view.getMessageId().toString());
                check(n != null, "an id that was sent: " + view.getMessageId());
                same("body " + n, body(view), "the body");
                same(topic, view.getTopic(), "the topic");
                same("tag", view.getTag().get(), "the tag");
                same(List.of("key-" + n, "k"), List.copyOf(view.getKeys()), "the keys");
                same(Map.of("n", n), view.getProperties(), "the properties");
                same(1, view.getDeliveryAttempt(), "the attempt");
                check(!view.getBornHost().isEmpty(), "a host that it was born at");
            }
            check(consumer.receive(1, Duration.ofSeconds(30)).isEmpty(), "nothing is left");
        }
    }

    static void push() throws Exception {
        String topic = "java-push";
        Set<String> got = ConcurrentHashMap.newKeySet();
        AtomicInteger twice = new AtomicInteger();
        FilterExpression filter = new FilterExpression("a || c", FilterExpressionType.TAG);
        try (Producer producer = producer(topic)) {
            // It is not closed: this client waits for its polls before it says goodbye.
            pushConsumer("java-push-group", topic, filter, view -> {
                if (!got.add(body(view))) {
                    twice.incrementAndGet();
                }
                return ConsumeResult.SUCCESS;
            });
            Set<String> expected = new HashSet<>();
            for (int n = 0; n < 300; n++) {
                String tag = List.of("a", "b", "c").get(n % 3);
                producer.send(message(topic, tag + n).setTag(tag).build());
                if (!tag.equals("b")) {
                    expected.add(tag + n);
                }
            }
            until("all have come", () -> got.size() >= expected.size());
            same(expected, got, "what has come");
            same(0, twice.get(), "messages that came twice");
        }
    }

    static void filter() throws Exception {
        String topic = "java-filter";
        try (Producer producer = producer(topic)) {
            for (int n = 0; n < 12; n++) {
                MessageBuilder message = message(topic, "" + n).setTag(n % 3 == 0 ? "a" : "b")
                    .setKeys("key-" + n).addProperty("region", n % 2 == 0 ? "eu" : "us");
                if (n != 8) {
                    message.addProperty("price", n + ".50");
                }
                producer.send(message.build());
            }
            Map<String, List<String>> expected = Map.of(
                "region = 'eu' AND price > 4", List.of("10", "4", "6"),
                "NOT price > 4", List.of("0", "1", "2", "3"),
                "price IS NULL OR TAGS = 'a' AND price BETWEEN 3 AND 7", List.of("3", "6", "8"),
                "KEYS IN ('key-2', 'key-5') AND region <> 'us'", List.of("2"));
            int group = 0;
            for (Map.Entry<String, List<String>> one : expected.entrySet()) {
                FilterExpression sql =
                    new FilterExpression(one.getKey(), FilterExpressionType.SQL92);
                try (SimpleConsumer consumer = PROVIDER.newSimpleConsumerBuilder()
                    .setClientConfiguration(configuration())
                    .setConsumerGroup("java-filter-" + group++)
                    .setAwaitDuration(Duration.ofSeconds(2))
                    .setSubscriptionExpressions(Map.of(topic, sql)).build()) {
                    List<String> bodies = new ArrayList<>();
                    receive(consumer, one.getValue().size())
                        .forEach(view -> bodies.add(body(view)));
                    Collections.sort(bodies);
                    same(one.getValue(), bodies, one.getKey());
                    check(consumer.receive(32, Duration.ofSeconds(30)).isEmpty(),
                        "nothing else comes: " + one.getKey());
                }
            }
        }
        fails(() -> pushConsumer("java-filter-bad", topic,
            new FilterExpression("region = ", FilterExpressionType.SQL92),
            view -> ConsumeResult.SUCCESS), "IllegalStateException");
    }

    static void delay() throws Exception {
        String topic = "java-delay";
        try (Producer producer = producer(topic);
            SimpleConsumer consumer = simpleConsumer("java-delay-group", topic)) {
            long due = System.currentTimeMillis() + 2500;
            SendReceipt recalled = producer.send(message(topic, "recalled")
                .setDeliveryTimestamp(due).build());
            producer.send(message(topic, "later").setDeliveryTimestamp(due).build());
            producer.send(message(topic, "past").setDeliveryTimestamp(1000).build());
            same("past", body(receive(consumer, 1).get(0)), "a time in the past is now");
            String handle = recalled.getRecallHandle();
            same(recalled.getMessageId().toString(),
                producer.recallMessage(topic, handle).getMessageId().toString(), "what was recalled");
            MessageView later = receive(consumer, 1).get(0);
            long late = System.currentTimeMillis() - due;
            same("later", body(later), "what comes");
            check(late >= 0 && late < 1000, "it comes when it is due, not " + late + " ms after");
            same(due, later.getDeliveryTimestamp().get(), "the time that it was due");
            check(consumer.receive(1, Duration.ofSeconds(30)).isEmpty(), "the recalled one stays away");
            fails(() -> producer.recallMessage(topic, "made-up"), "40009");
        }
    }

    static void order() throws Exception {
        String topic = "java-order";
        Map<String, List<Integer>> got = new ConcurrentHashMap<>();
        AtomicInteger failures = new AtomicInteger();
        try (Producer producer = producer(topic)) {
            for (int n = 0; n < 60; n++) {
                producer.send(message(topic, "" + n).setMessageGroup("group-" + n % 3).build());
            }
            MessageListener listener = view -> {
                int n = Integer.parseInt(body(view));
                if (n % 20 == 7 && failures.getAndIncrement() % 3 != 2) {
                    return ConsumeResult.FAILURE;
                }
                got.computeIfAbsent(view.getMessageGroup().get(),
                    group -> Collections.synchronizedList(new ArrayList<>())).add(n);
                return ConsumeResult.SUCCESS;
            };
            for (int n = 0; n < 2; n++) {
                pushConsumer("java-order-group", topic, FilterExpression.SUB_ALL, listener);
            }
            until("all have come",
                () -> got.values().stream().mapToInt(List::size).sum() >= 60);
            for (int group = 0; group < 3; group++) {
                List<Integer> expected = new ArrayList<>();
                for (int n = group; n < 60; n += 3) {
                    expected.add(n);
                }
                same(expected, got.get("group-" + group), "the order of a group");
            }
            check(failures.get() > 0, "some failed before");
        }
    }

    static void dead() throws Exception {
        String topic = "java-dead";
        List<Integer> attempts = Collections.synchronizedList(new ArrayList<>());
        try (Producer producer = producer(topic)) {
            String id = producer.send(message(topic, "poison").build()).getMessageId().toString();
            pushConsumer("java-dead-group", topic,
                FilterExpression.SUB_ALL, view -> {
                    attempts.add(view.getDeliveryAttempt());
                    return ConsumeResult.FAILURE;
                });
            until("three attempts", () -> attempts.size() >= 3);
            String letters = "%DLQ%java-dead-group";
            try (SimpleConsumer reader = whenThere(() -> simpleConsumer("java-letters", letters))) {
                MessageView letter = receive(reader, 1).get(0);
                same(id, letter.getMessageId().toString(), "the id of the dead letter");
                same("poison", body(letter), "its body");
            }
            same(List.of(1, 2, 3), attempts, "the attempts");
        }
    }

    static void extend() throws Exception {
        String topic = "java-extend";
        try (Producer producer = producer(topic);
            SimpleConsumer consumer = simpleConsumer("java-extend-group", topic)) {
            producer.send(message(topic, "slow").build());
            MessageView view = consumer.receive(1, Duration.ofSeconds(2)).get(0);
            consumer.changeInvisibleDuration(view, Duration.ofSeconds(20));
            long began = System.nanoTime();
            while (System.nanoTime() - began < Duration.ofSeconds(4).toNanos()) {
                check(consumer.receive(1, Duration.ofSeconds(5)).isEmpty(), "it stays hidden");
            }
            consumer.changeInvisibleDuration(view, Duration.ofMillis(500));
            MessageView again = consumer.receive(1, Duration.ofSeconds(30)).get(0);
            same(2, again.getDeliveryAttempt(), "the attempt");
            fails(() -> consumer.ack(view), "40013");
            consumer.ack(again);
            check(consumer.receive(1, Duration.ofSeconds(30)).isEmpty(), "it is done");
        }
    }

    static void refused() throws Exception {
        String topic = "java-refused";
        try (Producer producer = producer(topic)) {
            fails(() -> producer.send(message(topic, "x").addProperty("KEYS", "x").build()), "40007");
            fails(() -> producer.send(message(topic, "x").addProperty("a", "x".repeat(40_000)).build()),
                "43101");
            fails(() -> producer.send(message(topic, "x").setMessageGroup("g".repeat(2000)).build()),
                "40006");
            fails(() -> producer.send(message(topic, "x")
                .setDeliveryTimestamp(System.currentTimeMillis() + Duration.ofDays(4000).toMillis())
                .build()), "40012");
        }
        fails(() -> PROVIDER.newPushConsumerBuilder().setClientConfiguration(configuration())
            .setConsumerGroup("java-refused-group")
            .setSubscriptionExpressions(Collections.singletonMap(topic,
                new FilterExpression("a | b", FilterExpressionType.TAG)))
            .setMessageListener(view -> ConsumeResult.SUCCESS).build(), "IllegalStateException");
    }

    /** A producer of java-transact that answers what it is asked. */
    static Producer transactor(TransactionChecker checker) throws ClientException {
        return PROVIDER.newProducerBuilder().setClientConfiguration(configuration())
            .setTopics("java-transact").setTransactionChecker(checker).build();
    }

    static String prepare(Producer producer, Transaction transaction, String body)
        throws ClientException {
        Message message = message("java-transact", body).setTag("tag").setKeys("key")
            .addProperty("body", body).build();
        return producer.send(message, transaction).getMessageId().toString();
    }

    static void prepareAndDie() throws Exception {
        Producer producer = transactor(view -> TransactionResolution.UNKNOWN);
        prepare(producer, producer.beginTransaction(), "orphan");
        // Its end is no goodbye.
        Runtime.getRuntime().halt(0);
    }

    static void transact() throws Exception {
        String java = ProcessHandle.current().info().command().orElse("java");
        String home = "-Duser.home=" + System.getProperty("user.home");
        Process orphan = new ProcessBuilder(java, home, "-cp", System.getProperty("java.class.path"),
            "Interop", endpoint, "prepareAndDie").inheritIO().start();
        same(0, orphan.waitFor(), "how one ends that prepares and dies");
        Map<String, AtomicInteger> asked = new ConcurrentHashMap<>();
        Producer producer = transactor(view -> {
            String body = body(view);
            same(Map.of("body", body), view.getProperties(), "the properties that it is asked with");
            same("tag", view.getTag().get(), "the tag that it is asked with");
            int times = asked.computeIfAbsent(body, of -> new AtomicInteger()).incrementAndGet();
            return switch (body) {
                case "orphan" -> TransactionResolution.COMMIT;
                case "unknown" -> times > 1 ? TransactionResolution.COMMIT
                    : TransactionResolution.UNKNOWN;
                case "dropped" -> TransactionResolution.ROLLBACK;
                default -> TransactionResolution.UNKNOWN;
            };
        });
        Transaction committed = producer.beginTransaction();
        String id = prepare(producer, committed, "committed");
        Transaction rolledBack = producer.beginTransaction();
        prepare(producer, rolledBack, "rolled back");
        committed.commit();
        rolledBack.rollback();
        committed.commit();
        fails(committed::rollback, "40008");
        prepare(producer, producer.beginTransaction(), "unknown");
        prepare(producer, producer.beginTransaction(), "dropped");
        try (SimpleConsumer consumer = simpleConsumer("java-transact-group", "java-transact")) {
            Set<String> got = new HashSet<>();
            for (MessageView view : receive(consumer, 3)) {
                got.add(body(view));
                if (body(view).equals("committed")) {
                    same(id, view.getMessageId().toString(), "the id of what was prepared");
                }
            }
            same(Set.of("committed", "orphan", "unknown"), got, "what has come");
            until("it is asked about the last", () -> asked.containsKey("dropped"));
            check(consumer.receive(1, Duration.ofSeconds(30)).isEmpty(), "nothing is left");
        }
        check(asked.get("unknown").get() >= 2, "one that does not know is asked again");
    }

    static void access(String key, String secret) throws Exception {
        String topic = "java-access";
        fails(() -> producer(topic), "40100");
        signer = new StaticSessionCredentialsProvider(key, "wrong");
        fails(() -> producer(topic), "40100");
        signer = new StaticSessionCredentialsProvider(key, secret);
        fails(() -> producer("java-closed"), "40300");
        try (Producer producer = producer(topic);
            SimpleConsumer consumer = simpleConsumer("java-access-group", topic)) {
            producer.send(message(topic, "signed").build());
            same("signed", body(receive(consumer, 1).get(0)), "what comes");
        }
    }

    static void crash() throws Exception {
        String topic = "java-crash";
        Set<String> acked = ConcurrentHashMap.newKeySet();
        Set<String> got = ConcurrentHashMap.newKeySet();
        Producer producer = producer(topic);
        pushConsumer("java-crash-group", topic, FilterExpression.SUB_ALL,
            view -> {
                got.add(view.getMessageId().toString());
                return ConsumeResult.SUCCESS;
            });
        int failures = 0;
        for (int n = 0; acked.size() < 2000; n++) {
            if (acked.size() == 500 && failures == 0) {
                System.out.println("KILL");
            }
            try {
                acked.add(producer.send(message(topic, "" + n).build()).getMessageId().toString());
            } catch (Exception error) {
                failures++;
                check(failures < 1000, "it comes back");
                Thread.sleep(50);
            }
        }
        until("all that was acknowledged has come", () -> got.containsAll(acked));
        System.out.println(failures + " sends failed");
    }

    interface Attempt<T> {
        T run() throws Exception;
    }

    interface Action {
        void run() throws Exception;
    }

    /** Tries until it works: a topic that is made when it is needed is there some time. */
    static <T> T whenThere(Attempt<T> attempt) throws Exception {
        long until = System.nanoTime() + Duration.ofSeconds(30).toNanos();
        while (true) {
            try {
                return attempt.run();
            } catch (Exception error) {
                check(System.nanoTime() < until, "it is never there: " + error);
            }
        }
    }

    static void fails(Action action, String code) {
        try {
            action.run();
        } catch (Exception error) {
            StringBuilder told = new StringBuilder();
            for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                told.append(cause).append(' ');
            }
            check(told.toString().contains(code), "refused by " + code + ", not " + told);
            return;
        }
        check(false, "it is refused by " + code);
    }
}
