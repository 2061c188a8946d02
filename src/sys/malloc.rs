//! glibc's malloc in a process whose threads come and go: mallopt(3) and malloc_trim(3).

use nix::libc::{M_ARENA_MAX, malloc_trim, mallopt};

/// Has all threads share two arenas, rather than eight for each processor: what is free in one is of no use to threads
/// of another. To be called before there are threads.
pub fn share_arenas() {
    // SAFETY: mallopt takes any numbers, and answers 0 to those that it does not know; then malloc is as it was.
    unsafe { mallopt(M_ARENA_MAX, 2) };
}

/// Gives free memory back to the kernel, which takes milliseconds: for the end of something large.
pub fn give_back() {
    // SAFETY: malloc_trim only touches pages in which nothing is allocated, and may be called at any time.
    unsafe { malloc_trim(0) };
}
