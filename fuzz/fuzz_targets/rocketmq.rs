#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("rocketmq", fuzz::rocketmq::seeds()),
    |data: &[u8]| fuzz::rocketmq::run(data)
);
