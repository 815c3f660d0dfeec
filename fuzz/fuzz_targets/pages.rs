#![no_main]

libfuzzer_sys::fuzz_target!(
    init: fuzz::begin("pages", fuzz::pages::seeds()),
    |data: &[u8]| fuzz::pages::run(data)
);
