//! How growd's allocator is set: jemalloc(3), under TUNING.
//!
//! With glibc's malloc GetJob takes a third more processor time: whatever a request allocates is looked for among all that
//! sled has left free. jemalloc is built for pages of 4 KiB; for a kernel with larger ones build with
//! `JEMALLOC_SYS_WITH_LG_PAGE=16`.

use std::ffi::c_char;

/// All threads share two arenas, rather than four for each processor: what is free in one is of no use to threads of
/// another. What has been free for a second goes back to the kernel, by a thread that sleeps when there is little to give: at
/// once, each burst of requests would have to ask for it again.
///
/// # Safety
/// jemalloc takes the symbol for a `const char *` to a C string, and reads it before `main`.
#[unsafe(export_name = "malloc_conf")]
pub static SETTINGS: Option<&'static c_char> =
    // SAFETY: a C string begins with a character, if only its NUL.
    Some(unsafe { &*c"narenas:2,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr() });
