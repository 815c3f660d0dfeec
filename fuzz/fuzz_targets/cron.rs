#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("cron", fuzz::cron::seeds()),
    |data: &[u8]| fuzz::cron::run(data)
);
