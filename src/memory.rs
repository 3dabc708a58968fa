//! How the process takes its memory from the kernel.

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
