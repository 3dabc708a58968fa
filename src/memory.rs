//! How the process takes its memory from the kernel, and gives it back.

/// Has all threads take from one arena of the C library (`M_ARENA_MAX` of mallopt(3)).
///
/// With its default each thread that is busy at the same time as others gets an arena
/// of its own, and each keeps the most that it ever held. The threads here come and go
/// with the driver's answers; few allocate at once, so what they wait for each other is
/// less than what they would keep. To be called before there is a second thread.
pub fn share_one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // It fails for no value; if it did, memory would be as it is without.
        #[allow(unsafe_code, reason = "a call of the C library without a pointer")]
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

/// Gives back to the kernel the pages that nothing is in any more (malloc_trim(3)).
///
/// The C library by itself gives back only what is free at the heap's end. So one list
/// of devices that was made in the worst minute of the node and is still in use would
/// keep all that was in use before it, resident for as long as the process runs.
/// It takes a call of the kernel for each stretch of free pages.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // It says whether anything was given back: either is well.
        #[allow(unsafe_code, reason = "a call of the C library without a pointer")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
