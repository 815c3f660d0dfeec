#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("json", fuzz::json::seeds()),
    |data: &[u8]| fuzz::json::run(data)
);
