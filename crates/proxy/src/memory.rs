//! Memory that only a great transaction needed, given back to the system.

/// Hands freed pages back. The allocator would keep them for a next time, which comes only when all rules are replaced.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; it locks the allocator's arenas itself and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
