#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("names", fuzz::names::seeds()),
    |data: &[u8]| fuzz::names::run(data)
);
