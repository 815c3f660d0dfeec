#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("filters", fuzz::filters::seeds()),
    |data: &[u8]| fuzz::filters::run(data)
);
