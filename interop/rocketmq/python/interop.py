"""The official Python client against a node: one scenario a run."""

import os
import subprocess
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer, SimpleConsumer, TransactionChecker,
                      TransactionResolution)
from rocketmq.grpc_protocol import FilterType

ENDPOINT = sys.argv[1]
SIGNER = []


def check(holds, what):
    if not holds:
        print("NOT SO:", what, flush=True)
        os._exit(1)


def same(expected, found, what):
    check(expected == found, f"{what}: {found!r} instead of {expected!r}")


def until(what, is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        check(time.monotonic() < deadline, f"it never came to that: {what}")
        time.sleep(0.02)


def configuration():
    return ClientConfiguration(ENDPOINT, Credentials(*SIGNER))


def producer(*topics):
    made = Producer(configuration(), topics)
    made.startup()
    return made


def simple_consumer(group, topic, expression=FilterExpression()):
    made = SimpleConsumer(configuration(), group, {topic: expression}, await_duration=3)
    made.startup()
    return made


class Listener(MessageListener):
    def __init__(self, consume):
        self.does = consume

    def consume(self, message):
        return ConsumeResult.SUCCESS if self.does(message) else ConsumeResult.FAILURE


def push_consumer(group, topic, consume, tags="*"):
    made = PushConsumer(configuration(), group, Listener(consume), {topic: FilterExpression(tags)})
    made.startup()
    return made


def message(topic, body, **parts):
    made = Message()
    made.topic = topic
    made.body = body.encode()
    for name, value in parts.items():
        if name == "properties":
            for pair in value.items():
                made.add_property(*pair)
        else:
            setattr(made, name, value)
    return made


def take(consumer, count):
    """Receives until so many have come, and acknowledges them."""
    got, empty = [], 0
    while len(got) < count and empty < 10:
        some = consumer.receive(32, 30) or []
        empty = 0 if some else empty + 1
        for one in some:
            got.append(one)
            consumer.ack(one)
    same(count, len(got), "messages received")
    return got


def fails(action, code):
    try:
        action()
    except Exception as error:
        told = f"{error!r} {getattr(error, 'code', '')}"
        check(str(code) in told, f"refused by {code}, not {told}")
        return
    check(False, f"it is refused by {code}")


def simple():
    topic = "python-simple"
    sender, consumer = producer(topic), simple_consumer("python-simple-group", topic)
    sent = {}
    for n in range(100):
        one = message(topic, f"body {n}", tag="tag", keys=f"key-{n}", properties={"n": str(n)})
        sent[sender.send(one).message_id] = n
    for got in take(consumer, 100):
        check(got.message_id in sent, f"an id that was sent: {got.message_id}")
        n = sent.pop(got.message_id)
        same(f"body {n}".encode(), got.body, "the body")
        same(topic, got.topic, "the topic")
        same("tag", got.tag, "the tag")
        same({"n": str(n)}, dict(got.properties), "the properties")
        same(1, got.delivery_attempt, "the attempt")
        check(not got.corrupted, "it is whole")
    check(not consumer.receive(1, 30), "nothing is left")
    consumer.shutdown()
    sender.shutdown()


def push():
    topic = "python-push"
    sender, got, lock = producer(topic), [], threading.Lock()

    def consume(one):
        with lock:
            got.append(one.body.decode())
        return True

    consumer = push_consumer("python-push-group", topic, consume, "a || c")
    expected = []
    for n in range(300):
        tag = "abc"[n % 3]
        sender.send(message(topic, f"{tag}{n}", tag=tag))
        if tag != "b":
            expected.append(f"{tag}{n}")
    until("all have come", lambda: len(got) >= len(expected))
    same(sorted(expected), sorted(got), "what has come, once each")
    consumer.shutdown()


def filter():
    topic = "python-filter"
    sender = producer(topic)
    for n in range(12):
        properties = {"region": "us" if n % 2 else "eu"}
        if n != 8:
            properties["price"] = f"{n}.50"
        sender.send(message(topic, str(n), tag="b" if n % 3 else "a", properties=properties))
    expected = {
        "region = 'eu' AND price > 4": ["10", "4", "6"],
        "NOT price > 4": ["0", "1", "2", "3"],
        "price IS NULL OR TAGS = 'a' AND price BETWEEN 3 AND 7": ["3", "6", "8"],
    }
    for group, (expression, bodies) in enumerate(expected.items()):
        sql = FilterExpression(expression, FilterType.SQL)
        consumer = simple_consumer(f"python-filter-{group}", topic, sql)
        same(bodies, sorted(got.body.decode() for got in take(consumer, len(bodies))), expression)
        check(not consumer.receive(32, 30), f"nothing else comes: {expression}")
        consumer.shutdown()
    sender.shutdown()


def delay():
    topic = "python-delay"
    sender, consumer = producer(topic), simple_consumer("python-delay-group", topic)
    # This client knows whole seconds.
    due = int(time.time()) + 3
    receipt = sender.send(message(topic, "recalled", delivery_timestamp=due))
    sender.send(message(topic, "later", delivery_timestamp=due))
    sender.recall_message(topic, receipt.recall_handle)
    [later] = take(consumer, 1)
    late = time.time() - due
    same(b"later", later.body, "what comes")
    check(0 <= late < 1, f"it comes when it is due, not {late} s after")
    check(not consumer.receive(1, 30), "the recalled one stays away")
    fails(lambda: sender.recall_message(topic, "made-up"), 40009)


def order():
    topic = "python-order"
    sender, got, failures, lock = producer(topic), {}, [], threading.Lock()
    for n in range(60):
        sender.send(message(topic, str(n), message_group=f"group-{n % 3}"))

    def consume(one):
        n = int(one.body)
        with lock:
            if n % 20 == 7:
                failures.append(n)
                if failures.count(n) % 3 != 0:
                    return False
            got.setdefault(one.message_group, []).append(n)
        return True

    for _ in range(2):
        push_consumer("python-order-group", topic, consume)
    until("all have come", lambda: sum(map(len, got.values())) >= 60)
    for group in range(3):
        same(list(range(group, 60, 3)), got[f"group-{group}"], "the order of a group")
    check(failures, "some failed before")


def dead():
    topic = "python-dead"
    sender, attempts = producer(topic), []
    poison = sender.send(message(topic, "poison")).message_id

    def consume(one):
        attempts.append(one.delivery_attempt)
        return False

    push_consumer("python-dead-group", topic, consume)
    until("three attempts", lambda: len(attempts) >= 3)
    reader = []

    def is_there():
        # The dead letters have a topic when there is the first.
        try:
            reader.append(simple_consumer("python-letters", "%DLQ%python-dead-group"))
        except Exception:
            pass
        return reader

    until("there are dead letters", is_there)
    [letter] = take(reader[0], 1)
    same(poison, letter.message_id, "the id of the dead letter")
    same(b"poison", letter.body, "its body")
    same([1, 2, 3], attempts, "the attempts")


def extend():
    topic = "python-extend"
    sender, consumer = producer(topic), simple_consumer("python-extend-group", topic)
    sender.send(message(topic, "slow"))
    [slow] = consumer.receive(1, 2)
    consumer.change_invisible_duration(slow, 20)
    began = time.monotonic()
    while time.monotonic() - began < 4:
        check(not consumer.receive(1, 5), "it stays hidden")
    consumer.change_invisible_duration(slow, 1)
    [again] = consumer.receive(1, 30)
    same(2, again.delivery_attempt, "the attempt")
    consumer.ack(again)
    check(not consumer.receive(1, 30), "it is done")


def refused():
    topic = "python-refused"
    sender = producer(topic)
    fails(lambda: sender.send(message(topic, "x", properties={"KEYS": "x"})), 40007)
    fails(lambda: sender.send(message(topic, "x", properties={"a": "x" * 40_000})), 43101)
    fails(lambda: sender.send(message(topic, "x", message_group="g" * 2000)), 40006)


class Answers(TransactionChecker):
    def __init__(self, answer):
        self.answer = answer

    def check(self, message):
        return self.answer(message)


def transactor(answer):
    """A producer of python-transact that answers what it is asked."""
    made = Producer(configuration(), ["python-transact"], checker=Answers(answer))
    made.startup()
    return made


def prepare(sender, body):
    transaction = sender.begin_transaction()
    one = message("python-transact", body, tag="tag", properties={"body": body})
    return transaction, sender.send(one, transaction).message_id


def prepare_and_die():
    prepare(transactor(lambda _: None), "orphan")
    # Its end is no goodbye.
    os._exit(0)


def transact():
    orphan = subprocess.run([sys.executable, __file__, ENDPOINT, "prepare_and_die"])
    same(0, orphan.returncode, "one prepares and dies")
    asked = []

    def answer(one):
        body = one.body.decode()
        same(({"body": body}, "tag"), (dict(one.properties), one.tag), "what it is asked with")
        asked.append(body)
        if body == "orphan" or (body == "unknown" and asked.count(body) > 1):
            return TransactionResolution.COMMIT
        if body == "dropped":
            return TransactionResolution.ROLLBACK
        return TransactionResolution.TRANSACTION_RESOLUTION_UNSPECIFIED

    sender = transactor(answer)
    committed, sent = prepare(sender, "committed")
    rolled_back, _ = prepare(sender, "rolled back")
    committed.commit()
    rolled_back.rollback()
    committed.commit()
    fails(committed.rollback, 40008)
    prepare(sender, "unknown")
    prepare(sender, "dropped")
    consumer = simple_consumer("python-transact-group", "python-transact")
    got = {one.body.decode(): one.message_id for one in take(consumer, 3)}
    same(["committed", "orphan", "unknown"], sorted(got), "what has come")
    same(sent, got["committed"], "the id of what was prepared")
    until("it is asked about the last", lambda: "dropped" in asked)
    check(not consumer.receive(1, 30), "nothing is left")
    check(asked.count("unknown") >= 2, "one that does not know is asked again")


def access():
    topic = "python-access"
    key, secret = sys.argv[3:]

    # This client starts without a route, fails when it sends, and does not say by which code.
    def refused(name):
        fails(lambda: producer(name).send(message(name, "x")), f"fetch topic:{name} route")

    refused(topic)
    SIGNER[:] = [key, "wrong"]
    refused(topic)
    SIGNER[:] = [key, secret]
    refused("python-closed")
    sender, consumer = producer(topic), simple_consumer("python-access-group", topic)
    sender.send(message(topic, "signed"))
    [one] = take(consumer, 1)
    same(b"signed", one.body, "what comes")


def crash():
    topic = "python-crash"
    sender, got, acked, failures = producer(topic), set(), set(), 0

    def consume(one):
        got.add(one.message_id)
        return True

    push_consumer("python-crash-group", topic, consume)
    n = 0
    while len(acked) < 2000:
        if len(acked) == 500 and failures == 0:
            print("KILL", flush=True)
        try:
            acked.add(sender.send(message(topic, str(n))).message_id)
        except Exception:
            failures += 1
            check(failures < 1000, "it comes back")
            time.sleep(0.05)
        n += 1
    until("all that was acknowledged has come", lambda: acked <= got)
    print(failures, "sends failed")


SCENARIOS = [simple, push, filter, delay, order, dead, extend, refused, transact, prepare_and_die,
             access, crash]
{scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[2]]()
print("done", flush=True)
# What the client leaves running does not matter any more.
os._exit(0)
