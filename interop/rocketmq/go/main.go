// The official Go client against a node: one scenario a run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

var (
	endpoint string
	signer   = &credentials.SessionCredentials{}
	ctx      = context.Background()
)

func main() {
	endpoint = os.Args[1]
	// TLS stays as it is by default: on.
	scenarios := map[string]func(){
		"simple": simple, "push": push, "filter": filter, "delay": delay, "order": order,
		"dead": dead, "extend": extend, "refused": refused, "transact": transact,
		"prepare-and-die": prepareAndDie, "access": access, "crash": crash,
	}
	scenario, known := scenarios[os.Args[2]]
	check(known, "there is a scenario "+os.Args[2])
	scenario()
	fmt.Println("done")
}

func check(holds bool, what string) {
	if !holds {
		fmt.Println("NOT SO:", what)
		os.Exit(1)
	}
}

func same(expected, found any, what string) {
	check(reflect.DeepEqual(expected, found), fmt.Sprintf("%s: %v instead of %v", what, found, expected))
}

func must[T any](value T, err error) T {
	check(err == nil, fmt.Sprint("no error: ", err))
	return value
}

func until(what string, isSo func() bool) {
	deadline := time.Now().Add(60 * time.Second)
	for !isSo() {
		check(time.Now().Before(deadline), "it never came to that: "+what)
		time.Sleep(20 * time.Millisecond)
	}
}

func config(group string) *rmq.Config {
	return &rmq.Config{
		Endpoint: endpoint, ConsumerGroup: group, Credentials: signer,
	}
}

func producer(topics ...string) rmq.Producer {
	made := must(rmq.NewProducer(config(""), rmq.WithTopics(topics...)))
	check(made.Start() == nil, "the producer starts")
	return made
}

func subscription(topic, tags string) map[string]*rmq.FilterExpression {
	return map[string]*rmq.FilterExpression{topic: rmq.NewFilterExpression(tags)}
}

func simpleConsumer(group, topic string) rmq.SimpleConsumer {
	made := must(rmq.NewSimpleConsumer(config(group),
		rmq.WithSimpleAwaitDuration(3*time.Second),
		rmq.WithSimpleSubscriptionExpressions(subscription(topic, "*"))))
	err := made.Start()
	check(err == nil, fmt.Sprint("the consumer starts: ", err))
	return made
}

func pushConsumer(group, topic, tags string, consume func(*rmq.MessageView) rmq.ConsumerResult) rmq.PushConsumer {
	made := must(rmq.NewPushConsumer(config(group),
		rmq.WithPushAwaitDuration(5*time.Second),
		rmq.WithPushSubscriptionExpressions(subscription(topic, tags)),
		rmq.WithPushMessageListener(&rmq.FuncMessageListener{Consume: consume}),
		rmq.WithPushConsumptionThreadCount(20),
		rmq.WithPushMaxCacheMessageCount(1024)))
	err := made.Start()
	check(err == nil, fmt.Sprint("the consumer starts: ", err))
	return made
}

func message(topic, body string) *rmq.Message {
	return &rmq.Message{Topic: topic, Body: []byte(body)}
}

func send(producer rmq.Producer, message *rmq.Message) *rmq.SendReceipt {
	receipts := must(producer.Send(ctx, message))
	same(1, len(receipts), "receipts")
	return receipts[0]
}

// One receive; nothing in time is an error with this client.
func receive(consumer rmq.SimpleConsumer, invisible time.Duration) []*rmq.MessageView {
	views, err := consumer.Receive(ctx, 32, invisible)
	if err != nil {
		check(strings.Contains(err.Error(), "MESSAGE_NOT_FOUND"), "no other error: "+err.Error())
		return nil
	}
	return views
}

// Receives until so many have come, and acknowledges them.
func take(consumer rmq.SimpleConsumer, count int) []*rmq.MessageView {
	var views []*rmq.MessageView
	for empty := 0; len(views) < count && empty < 10; {
		some := receive(consumer, 30*time.Second)
		empty++
		for _, view := range some {
			empty = 0
			views = append(views, view)
			check(consumer.Ack(ctx, view) == nil, "an ack")
		}
	}
	same(count, len(views), "messages received")
	return views
}

func fails(err error, code int32) {
	var status *rmq.ErrRpcStatus
	found := errors.As(err, &status)
	check(found && status.Code == code, fmt.Sprintf("refused by %d, not %v", code, err))
}

func simple() {
	const topic = "go-simple"
	producer, consumer := producer(topic), simpleConsumer("go-simple-group", topic)
	sent := map[string]string{}
	for n := 0; n < 100; n++ {
		message := message(topic, fmt.Sprint("body ", n))
		message.SetTag("tag")
		message.SetKeys(fmt.Sprint("key-", n), "k")
		message.AddProperty("n", fmt.Sprint(n))
		sent[send(producer, message).MessageID] = fmt.Sprint(n)
	}
	for _, view := range take(consumer, 100) {
		n, known := sent[view.GetMessageId()]
		check(known, "an id that was sent: "+view.GetMessageId())
		delete(sent, view.GetMessageId())
		same("body "+n, string(view.GetBody()), "the body")
		same(topic, view.GetTopic(), "the topic")
		same("tag", *view.GetTag(), "the tag")
		same([]string{"key-" + n, "k"}, view.GetKeys(), "the keys")
		same(map[string]string{"n": n}, view.GetProperties(), "the properties")
		same(int32(1), view.GetDeliveryAttempt(), "the attempt")
	}
	same(0, len(receive(consumer, 30*time.Second)), "messages that are left")
	check(consumer.GracefulStop() == nil, "the consumer stops")
	check(producer.GracefulStop() == nil, "the producer stops")
}

func push() {
	const topic = "go-push"
	producer := producer(topic)
	var got sync.Map
	var count, twice atomic.Int32
	// It is not stopped: this client waits for its polls before it says goodbye.
	pushConsumer("go-push-group", topic, "a || c", func(view *rmq.MessageView) rmq.ConsumerResult {
		if _, known := got.LoadOrStore(string(view.GetBody()), true); known {
			twice.Add(1)
		} else {
			count.Add(1)
		}
		return rmq.SUCCESS
	})
	for n := 0; n < 300; n++ {
		tag := []string{"a", "b", "c"}[n%3]
		message := message(topic, tag+fmt.Sprint(n))
		message.SetTag(tag)
		send(producer, message)
	}
	until("all have come", func() bool { return count.Load() >= 200 })
	same(int32(0), twice.Load(), "messages that came twice")
	got.Range(func(body, _ any) bool {
		check(!strings.HasPrefix(body.(string), "b"), "only what was asked for")
		return true
	})
}

func filter() {
	const topic = "go-filter"
	producer := producer(topic)
	for n := 0; n < 12; n++ {
		message := message(topic, fmt.Sprint(n))
		message.SetTag([]string{"a", "b", "b"}[n%3])
		message.AddProperty("region", []string{"eu", "us"}[n%2])
		if n != 8 {
			message.AddProperty("price", fmt.Sprint(n, ".50"))
		}
		send(producer, message)
	}
	expected := []struct {
		expression string
		bodies     []string
	}{
		{"region = 'eu' AND price > 4", []string{"10", "4", "6"}},
		{"NOT price > 4", []string{"0", "1", "2", "3"}},
		{"price IS NULL OR TAGS = 'a' AND price BETWEEN 3 AND 7", []string{"3", "6", "8"}},
	}
	for group, one := range expected {
		sql := rmq.NewFilterExpressionWithType(one.expression, rmq.SQL92)
		consumer := must(rmq.NewSimpleConsumer(config(fmt.Sprint("go-filter-", group)),
			rmq.WithSimpleAwaitDuration(2*time.Second),
			rmq.WithSimpleSubscriptionExpressions(map[string]*rmq.FilterExpression{topic: sql})))
		err := consumer.Start()
		check(err == nil, fmt.Sprint("the consumer starts: ", err))
		var bodies []string
		for _, view := range take(consumer, len(one.bodies)) {
			bodies = append(bodies, string(view.GetBody()))
		}
		sort.Strings(bodies)
		same(one.bodies, bodies, one.expression)
		same(0, len(receive(consumer, 30*time.Second)), "nothing else comes: "+one.expression)
	}
}

func delay() {
	const topic = "go-delay"
	producer, consumer := producer(topic), simpleConsumer("go-delay-group", topic)
	due := time.Now().Add(2500 * time.Millisecond)
	recalled, later := message(topic, "recalled"), message(topic, "later")
	recalled.SetDelayTimestamp(due)
	later.SetDelayTimestamp(due)
	receipt := send(producer, recalled)
	send(producer, later)
	id := must(producer.Recall(ctx, topic, receipt.RecallHandle))
	same(receipt.MessageID, id, "what was recalled")
	view := take(consumer, 1)[0]
	late := time.Since(due)
	same("later", string(view.GetBody()), "what comes")
	check(late >= -time.Millisecond && late < time.Second, fmt.Sprint("it comes when it is due: ", late))
	same(0, len(receive(consumer, 30*time.Second)), "the recalled one stays away")
	_, err := producer.Recall(ctx, topic, "made-up")
	fails(err, 40009)
}

func order() {
	const topic = "go-order"
	producer := producer(topic)
	for n := 0; n < 60; n++ {
		message := message(topic, fmt.Sprint(n))
		message.SetMessageGroup(fmt.Sprint("group-", n%3))
		send(producer, message)
	}
	var lock sync.Mutex
	got, failures, total := map[string][]int{}, 0, 0
	consume := func(view *rmq.MessageView) rmq.ConsumerResult {
		lock.Lock()
		defer lock.Unlock()
		n := must(strconv.Atoi(string(view.GetBody())))
		if n%20 == 7 {
			failures++
			if failures%3 != 0 {
				return rmq.FAILURE
			}
		}
		group := *view.GetMessageGroup()
		got[group] = append(got[group], n)
		total++
		return rmq.SUCCESS
	}
	for n := 0; n < 2; n++ {
		pushConsumer("go-order-group", topic, "*", consume)
	}
	until("all have come", func() bool {
		lock.Lock()
		defer lock.Unlock()
		return total >= 60
	})
	for group := 0; group < 3; group++ {
		var expected []int
		for n := group; n < 60; n += 3 {
			expected = append(expected, n)
		}
		same(expected, got[fmt.Sprint("group-", group)], "the order of a group")
	}
	check(failures > 0, "some failed before")
}

func dead() {
	const topic = "go-dead"
	producer := producer(topic)
	id := send(producer, message(topic, "poison")).MessageID
	var lock sync.Mutex
	var attempts []int32
	pushConsumer("go-dead-group", topic, "*", func(view *rmq.MessageView) rmq.ConsumerResult {
		lock.Lock()
		defer lock.Unlock()
		attempts = append(attempts, view.GetDeliveryAttempt())
		return rmq.FAILURE
	})
	seen := func() []int32 {
		lock.Lock()
		defer lock.Unlock()
		return append([]int32{}, attempts...)
	}
	until("three attempts", func() bool { return len(seen()) >= 3 })
	// The dead letters have a topic when there is the first.
	var reader rmq.SimpleConsumer
	until("there are dead letters", func() bool {
		made, err := rmq.NewSimpleConsumer(config("go-letters"),
			rmq.WithSimpleAwaitDuration(3*time.Second),
			rmq.WithSimpleSubscriptionExpressions(subscription("%DLQ%go-dead-group", "*")))
		if err != nil || made.Start() != nil {
			return false
		}
		reader = made
		return true
	})
	letter := take(reader, 1)[0]
	same(id, letter.GetMessageId(), "the id of the dead letter")
	same("poison", string(letter.GetBody()), "its body")
	same([]int32{1, 2, 3}, seen(), "the attempts")
}

func extend() {
	const topic = "go-extend"
	producer, consumer := producer(topic), simpleConsumer("go-extend-group", topic)
	send(producer, message(topic, "slow"))
	view := receive(consumer, 2*time.Second)[0]
	check(consumer.ChangeInvisibleDuration(view, 20*time.Second) == nil, "it is extended")
	for began := time.Now(); time.Since(began) < 4*time.Second; {
		same(0, len(receive(consumer, 5*time.Second)), "messages while it is hidden")
	}
	check(consumer.ChangeInvisibleDuration(view, 500*time.Millisecond) == nil, "it is shortened")
	again := receive(consumer, 30*time.Second)
	same(1, len(again), "messages that come again")
	same(int32(2), again[0].GetDeliveryAttempt(), "the attempt")
	check(consumer.Ack(ctx, again[0]) == nil, "an ack")
	same(0, len(receive(consumer, 30*time.Second)), "messages that are left")
}

func refused() {
	const topic = "go-refused"
	producer := producer(topic)
	refuse := func(code int32, change func(*rmq.Message)) {
		message := message(topic, "x")
		change(message)
		_, err := producer.Send(ctx, message)
		fails(err, code)
	}
	refuse(40007, func(message *rmq.Message) { message.AddProperty("KEYS", "x") })
	refuse(43101, func(message *rmq.Message) { message.AddProperty("a", strings.Repeat("x", 40_000)) })
	refuse(40006, func(message *rmq.Message) { message.SetMessageGroup(strings.Repeat("g", 2000)) })
	refuse(40004, func(message *rmq.Message) { message.SetTag("a|b") })
	refuse(40012, func(message *rmq.Message) { message.SetDelayTimestamp(time.Now().Add(4000 * 24 * time.Hour)) })
}

// A producer of go-transact that answers what it is asked.
func transactor(check func(*rmq.MessageView) rmq.TransactionResolution) rmq.Producer {
	made := must(rmq.NewProducer(config(""), rmq.WithTopics("go-transact"),
		rmq.WithTransactionChecker(&rmq.TransactionChecker{Check: check})))
	err := made.Start()
	same(nil, err, "an error at the start")
	return made
}

func prepare(producer rmq.Producer, body string) (rmq.Transaction, string) {
	message := message("go-transact", body)
	message.SetTag("tag")
	message.AddProperty("body", body)
	transaction := producer.BeginTransaction()
	receipts := must(producer.SendWithTransaction(ctx, message, transaction))
	return transaction, receipts[0].MessageID
}

// Its end is no goodbye.
func prepareAndDie() {
	prepare(transactor(func(*rmq.MessageView) rmq.TransactionResolution { return rmq.UNKNOWN }), "orphan")
	os.Exit(0)
}

func transact() {
	orphan := exec.Command(os.Args[0], endpoint, "prepare-and-die")
	check(orphan.Run() == nil, "one prepares and dies")
	var lock sync.Mutex
	asked := map[string]int{}
	times := func(body string) int {
		lock.Lock()
		defer lock.Unlock()
		return asked[body]
	}
	producer := transactor(func(view *rmq.MessageView) rmq.TransactionResolution {
		body := string(view.GetBody())
		same(map[string]string{"body": body}, view.GetProperties(), "the properties that it is asked with")
		same("tag", *view.GetTag(), "the tag that it is asked with")
		lock.Lock()
		asked[body]++
		lock.Unlock()
		switch {
		case body == "orphan" || body == "unknown" && times(body) > 1:
			return rmq.COMMIT
		case body == "dropped":
			return rmq.ROLLBACK
		}
		return rmq.UNKNOWN
	})
	committed, id := prepare(producer, "committed")
	rolledBack, _ := prepare(producer, "rolled back")
	check(committed.Commit() == nil, "a commit")
	check(rolledBack.RollBack() == nil, "a rollback")
	check(committed.Commit() == nil, "a commit again")
	fails(committed.RollBack(), 40008)
	prepare(producer, "unknown")
	prepare(producer, "dropped")
	consumer := simpleConsumer("go-transact-group", "go-transact")
	var got []string
	for _, view := range take(consumer, 3) {
		body := string(view.GetBody())
		got = append(got, body)
		same(map[string]string{"body": body}, view.GetProperties(), "the properties")
		check(body != "committed" || view.GetMessageId() == id, "the id of what was prepared")
	}
	sort.Strings(got)
	same([]string{"committed", "orphan", "unknown"}, got, "what has come")
	until("it is asked about the last", func() bool { return times("dropped") > 0 })
	same(0, len(receive(consumer, 30*time.Second)), "messages that are left")
	check(times("unknown") >= 2, "one that does not know is asked again")
}

func access() {
	const topic = "go-access"
	refused := func(topic, code string) {
		made := must(rmq.NewProducer(config(""), rmq.WithTopics(topic)))
		err := made.Start()
		check(err != nil && strings.Contains(err.Error(), code), fmt.Sprint("refused by ", code, ", not ", err))
	}
	refused(topic, "UNAUTHORIZED")
	signer = &credentials.SessionCredentials{AccessKey: os.Args[3], AccessSecret: "wrong"}
	refused(topic, "UNAUTHORIZED")
	signer = &credentials.SessionCredentials{AccessKey: os.Args[3], AccessSecret: os.Args[4]}
	refused("go-closed", "FORBIDDEN")
	producer, consumer := producer(topic), simpleConsumer("go-access-group", topic)
	send(producer, message(topic, "signed"))
	same("signed", string(take(consumer, 1)[0].GetBody()), "what comes")
}

func crash() {
	const topic = "go-crash"
	producer := producer(topic)
	var got sync.Map
	pushConsumer("go-crash-group", topic, "*", func(view *rmq.MessageView) rmq.ConsumerResult {
		got.Store(view.GetMessageId(), true)
		return rmq.SUCCESS
	})
	var acked []string
	failures := 0
	for n := 0; len(acked) < 2000; n++ {
		if len(acked) == 500 && failures == 0 {
			fmt.Println("KILL")
		}
		receipts, err := producer.Send(ctx, message(topic, fmt.Sprint(n)))
		if err != nil {
			failures++
			check(failures < 1000, "it comes back")
			time.Sleep(50 * time.Millisecond)
			continue
		}
		acked = append(acked, receipts[0].MessageID)
	}
	until("all that was acknowledged has come", func() bool {
		for _, id := range acked {
			if _, known := got.Load(id); !known {
				return false
			}
		}
		return true
	})
	fmt.Println(failures, "sends failed")
}
