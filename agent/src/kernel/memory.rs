//! Keeps the memory that loading takes for a moment from staying with the process.
//!
//! aya reads and parses the description of all the kernel's types (some 20 MB for a few milliseconds) before it can be
//! told that nobody needs it. glibc learns from such a burst to keep free memory in future instead of giving it back;
//! this tells it not to. Other C libraries have no such habit.

/// To be called before the burst.
pub(crate) fn expect_burst() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// What is larger is mapped for itself and returned when freed: glibc's default, which stays in force when it
        /// is set.
        const LARGE: i32 = 128 * 1024;
        /// Free memory to keep: enough that a busy agent does not ask the kernel for it again and again.
        const SPARE: i32 = 1024 * 1024;
        #[expect(unsafe_code, reason = "glibc's own function, without a safe wrapper")]
        // SAFETY: takes two numbers, may be called at any time from any thread.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE);
        };
    }
}

/// To be called after the burst.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "glibc's own function, without a safe wrapper")]
        // SAFETY: takes a number, may be called at any time from any thread.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}
