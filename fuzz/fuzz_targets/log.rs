#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("log", fuzz::log::seeds()),
    |data: &[u8]| fuzz::log::run(data)
);
