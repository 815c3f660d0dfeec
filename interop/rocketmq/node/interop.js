// The official Node.js client against a node: one scenario a run.
'use strict';

const { execFileSync } = require('node:child_process');
const { ConsumeResult, FilterExpression, Producer, PushConsumer, SimpleConsumer } = require('rocketmq-client-nodejs');

const endpoints = process.argv[2];

function check(holds, what) {
  if (!holds) {
    console.log('NOT SO:', what);
    process.exit(1);
  }
}

function same(expected, found, what) {
  const [a, b] = [expected, found].map(value => JSON.stringify(value));
  check(a === b, `${what}: ${b} instead of ${a}`);
}

const pause = ms => new Promise(done => setTimeout(done, ms));

async function until(what, isSo) {
  for (const end = Date.now() + 60_000; !isSo(); await pause(20)) {
    check(Date.now() < end, `it never came to that: ${what}`);
  }
}

// Its log is no matter here.
const quiet = { info() {}, warn() {}, error() {}, debug() {} };
const client = { endpoints, namespace: '', logger: quiet };

function sign(accessKey, accessSecret) {
  client.sessionCredentials = { accessKey, accessSecret };
}

async function producer(...topics) {
  const made = new Producer({ ...client, topics });
  await made.startup();
  return made;
}

async function simpleConsumer(group, topic, expression = '*') {
  const subscriptions = new Map([[topic, expression]]);
  const made = new SimpleConsumer({ ...client, consumerGroup: group, subscriptions, awaitDuration: 3000 });
  await made.startup();
  return made;
}

async function pushConsumer(group, topic, consume, tags = '*') {
  const messageListener = {
    consume: async view => (consume(view) ? ConsumeResult.SUCCESS : ConsumeResult.FAILURE),
  };
  const subscriptions = new Map([[topic, tags]]);
  const made = new PushConsumer({ ...client, consumerGroup: group, subscriptions, messageListener });
  await made.startup();
  return made;
}

const message = (topic, body, more = {}) => ({ topic, body: Buffer.from(body), ...more });

// What a producer says of a transaction: the client does not give these a name outside.
const UNKNOWN = 0;
const COMMIT = 1;
const ROLLBACK = 2;

// A producer of node-transact that answers what it is asked.
async function transactor(answer) {
  const checker = { check: async view => answer(view) };
  const made = new Producer({ ...client, topics: ['node-transact'], checker });
  await made.startup();
  return made;
}

async function prepare(sender, body) {
  const transaction = sender.beginTransaction();
  const properties = new Map([['body', body]]);
  const receipt = await sender.send(message('node-transact', body, { tag: 'tag', properties }), transaction);
  return { transaction, messageId: receipt.messageId };
}

// Receives until so many have come, and acknowledges them.
async function take(consumer, count) {
  const views = [];
  for (let empty = 0; views.length < count && empty < 10;) {
    const some = await consumer.receive(32, 30_000);
    empty = some.length ? 0 : empty + 1;
    for (const view of some) {
      views.push(view);
      await consumer.ack(view);
    }
  }
  same(count, views.length, 'messages received');
  return views;
}

async function fails(action, code) {
  try {
    await action();
  } catch (error) {
    let told = '';
    for (let cause = error; cause; cause = cause.cause) told += `${cause} ${cause.code} `;
    check(told.includes(code), `refused by ${code}, not ${told}`);
    return;
  }
  check(false, `it is refused by ${code}`);
}

const scenarios = {
  async simple() {
    const topic = 'node-simple';
    const sender = await producer(topic);
    const consumer = await simpleConsumer('node-simple-group', topic);
    const sent = new Map();
    for (let n = 0; n < 100; n++) {
      const properties = new Map([['n', `${n}`]]);
      const one = message(topic, `body ${n}`, { tag: 'tag', keys: [`key-${n}`, 'k'], properties });
      sent.set((await sender.send(one)).messageId, n);
    }
    for (const view of await take(consumer, 100)) {
      check(sent.has(view.messageId), `an id that was sent: ${view.messageId}`);
      const n = sent.get(view.messageId);
      sent.delete(view.messageId);
      same(`body ${n}`, view.body.toString(), 'the body');
      same([topic, 'tag', [`key-${n}`, 'k']], [view.topic, view.tag, view.keys], 'topic, tag, keys');
      same([['n', `${n}`]], [...view.properties], 'the properties');
      same(1, view.deliveryAttempt, 'the attempt');
      check(!view.corrupted, 'it is whole');
    }
    same(0, (await consumer.receive(1, 30_000)).length, 'messages that are left');
  },

  async push() {
    const topic = 'node-push';
    const sender = await producer(topic);
    const got = [];
    await pushConsumer('node-push-group', topic, view => got.push(view.body.toString()), 'a || c');
    const expected = [];
    for (let n = 0; n < 300; n++) {
      const tag = 'abc'[n % 3];
      await sender.send(message(topic, tag + n, { tag }));
      if (tag !== 'b') expected.push(tag + n);
    }
    await until('all have come', () => got.length >= expected.length);
    same(expected.sort(), got.sort(), 'what has come, once each');
  },

  async filter() {
    const topic = 'node-filter';
    const sender = await producer(topic);
    for (let n = 0; n < 12; n++) {
      const properties = new Map([['region', n % 2 ? 'us' : 'eu']]);
      if (n !== 8) properties.set('price', `${n}.50`);
      await sender.send(message(topic, `${n}`, { tag: n % 3 ? 'b' : 'a', properties }));
    }
    const expected = {
      "region = 'eu' AND price > 4": ['10', '4', '6'],
      'NOT price > 4': ['0', '1', '2', '3'],
      "price IS NULL OR TAGS = 'a' AND price BETWEEN 3 AND 7": ['3', '6', '8'],
    };
    let group = 0;
    for (const [expression, bodies] of Object.entries(expected)) {
      // The client does not export the name of this type.
      const sql = new FilterExpression(expression, 2);
      const consumer = await simpleConsumer(`node-filter-${group++}`, topic, sql);
      const views = await take(consumer, bodies.length);
      same(bodies, views.map(view => view.body.toString()).sort(), expression);
      same(0, (await consumer.receive(32, 30_000)).length, `what else comes: ${expression}`);
    }
  },

  async delay() {
    const topic = 'node-delay';
    const sender = await producer(topic);
    const consumer = await simpleConsumer('node-delay-group', topic);
    const due = Date.now() + 2500;
    const later = { deliveryTimestamp: new Date(due) };
    const receipt = await sender.send(message(topic, 'recalled', later));
    await sender.send(message(topic, 'later', later));
    await sender.recallMessage(topic, receipt.recallHandle);
    const [view] = await take(consumer, 1);
    const late = Date.now() - due;
    same('later', view.body.toString(), 'what comes');
    check(late >= 0 && late < 1000, `it comes when it is due, not ${late} ms after`);
    same(0, (await consumer.receive(1, 30_000)).length, 'the recalled one stays away');
    await fails(() => sender.recallMessage(topic, 'made-up'), '40009');
  },

  async order() {
    const topic = 'node-order';
    const sender = await producer(topic);
    const got = [[], [], []];
    let failures = 0;
    for (let n = 0; n < 60; n++) {
      await sender.send(message(topic, `${n}`, { messageGroup: `${n % 3}` }));
    }
    const consume = view => {
      const n = Number(view.body.toString());
      if (n % 20 === 7 && ++failures % 3 !== 0) return false;
      got[Number(view.messageGroup)].push(n);
      return true;
    };
    for (let n = 0; n < 2; n++) await pushConsumer('node-order-group', topic, consume);
    await until('all have come', () => got.flat().length >= 60);
    const of = group => Array.from({ length: 20 }, (_, n) => group + 3 * n);
    same([0, 1, 2].map(of), got, 'the order of each group');
    check(failures > 0, 'some failed before');
  },

  async dead() {
    const topic = 'node-dead';
    const sender = await producer(topic);
    const poison = (await sender.send(message(topic, 'poison'))).messageId;
    const attempts = [];
    await pushConsumer('node-dead-group', topic, view => {
      attempts.push(view.deliveryAttempt);
      return false;
    });
    await until('three attempts', () => attempts.length >= 3);
    // The dead letters have a topic when there is the first.
    let reader;
    for (const end = Date.now() + 30_000; !reader;) {
      try {
        reader = await simpleConsumer('node-letters', '%DLQ%node-dead-group');
      } catch (error) {
        check(Date.now() < end, `there are dead letters: ${error}`);
      }
    }
    const [letter] = await take(reader, 1);
    same([poison, 'poison'], [letter.messageId, letter.body.toString()], 'the dead letter');
    same([1, 2, 3], attempts, 'the attempts');
  },

  async extend() {
    const topic = 'node-extend';
    const sender = await producer(topic);
    const consumer = await simpleConsumer('node-extend-group', topic);
    await sender.send(message(topic, 'slow'));
    const [view] = await consumer.receive(1, 2000);
    await consumer.changeInvisibleDuration(view, 20_000);
    for (const end = Date.now() + 4000; Date.now() < end;) {
      same(0, (await consumer.receive(1, 5000)).length, 'messages while it is hidden');
    }
    await consumer.changeInvisibleDuration(view, 500);
    const [again] = await consumer.receive(1, 30_000);
    same(2, again.deliveryAttempt, 'the attempt');
    await consumer.ack(again);
    same(0, (await consumer.receive(1, 30_000)).length, 'messages that are left');
  },

  async refused() {
    const topic = 'node-refused';
    const sender = await producer(topic);
    const properties = (name, value) => ({ properties: new Map([[name, value]]) });
    await fails(() => sender.send(message(topic, 'x', properties('KEYS', 'x'))), '40007');
    await fails(() => sender.send(message(topic, 'x', properties('a', 'x'.repeat(40_000)))), '43101');
    await fails(() => sender.send(message(topic, 'x', { messageGroup: 'g'.repeat(2000) })), '40006');
  },

  async prepareAndDie() {
    await prepare(await transactor(() => UNKNOWN), 'orphan');
    // Its end is no goodbye.
    process.exit(0);
  },

  async transact() {
    execFileSync(process.execPath, [__filename, endpoints, 'prepareAndDie']);
    const asked = [];
    const times = body => asked.filter(one => one === body).length;
    const sender = await transactor(view => {
      const body = view.body.toString();
      same([['body', body]], [...view.properties], 'the properties that it is asked with');
      same('tag', view.tag, 'the tag that it is asked with');
      asked.push(body);
      if (body === 'orphan' || (body === 'unknown' && times(body) > 1)) return COMMIT;
      return body === 'dropped' ? ROLLBACK : UNKNOWN;
    });
    const committed = await prepare(sender, 'committed');
    const rolledBack = await prepare(sender, 'rolled back');
    await committed.transaction.commit();
    await rolledBack.transaction.rollback();
    await committed.transaction.commit();
    await fails(() => committed.transaction.rollback(), '40008');
    await prepare(sender, 'unknown');
    await prepare(sender, 'dropped');
    const consumer = await simpleConsumer('node-transact-group', 'node-transact');
    const got = new Map((await take(consumer, 3)).map(view => [view.body.toString(), view.messageId]));
    same(['committed', 'orphan', 'unknown'], [...got.keys()].sort(), 'what has come');
    same(committed.messageId, got.get('committed'), 'the id of what was prepared');
    await until('it is asked about the last', () => times('dropped') > 0);
    same(0, (await consumer.receive(1, 30_000)).length, 'messages that are left');
    check(times('unknown') >= 2, 'one that does not know is asked again');
  },

  async access() {
    const topic = 'node-access';
    const [accessKey, secret] = process.argv.slice(4);
    await fails(() => producer(topic), '40100');
    sign(accessKey, 'wrong');
    await fails(() => producer(topic), '40100');
    sign(accessKey, secret);
    await fails(() => producer('node-closed'), '40300');
    const sender = await producer(topic);
    const consumer = await simpleConsumer('node-access-group', topic);
    await sender.send(message(topic, 'signed'));
    const [view] = await take(consumer, 1);
    same('signed', view.body.toString(), 'what comes');
  },

  async crash() {
    const topic = 'node-crash';
    const sender = await producer(topic);
    const got = new Set();
    await pushConsumer('node-crash-group', topic, view => got.add(view.messageId));
    const acked = [];
    let failures = 0;
    for (let n = 0; acked.length < 2000; n++) {
      if (acked.length === 500 && failures === 0) console.log('KILL');
      try {
        acked.push((await sender.send(message(topic, `${n}`))).messageId);
      } catch {
        check(++failures < 1000, 'it comes back');
        await pause(50);
      }
    }
    await until('all that was acknowledged has come', () => acked.every(id => got.has(id)));
    console.log(failures, 'sends failed');
  },
};

process.on('unhandledRejection', error => check(false, `nothing is left unhandled: ${error.stack}`));
scenarios[process.argv[3]]().then(
  () => {
    console.log('done');
    // What the client leaves running does not matter any more.
    process.exit(0);
  },
  error => check(false, error.stack),
);
