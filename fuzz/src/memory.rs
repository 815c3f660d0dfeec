//! How much memory something takes.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Does something, which must not take more than so many bytes of memory at once. Whoever
/// calls is the only thread.
///
/// # Panics
/// If it does.
pub fn within<T>(most: usize, act: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let done = act();
    let took = MEMORY.peak_usage().saturating_sub(before);
    assert!(took <= most, "it took {took} bytes of memory, and may take {most}");
    done
}
