//! What a process's memory needs at times. The program's file and the allocator are the binary's, so it brings this.

/// What the binary does for the memory of a process that serves.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Called once it serves, when what the start took can be given back.
    pub once_serving: fn(),
    /// Called by each long-lived thread every few seconds: what it has freed and not used again goes back to the kernel. It must
    /// return within the time of a request.
    pub give_back: fn(),
}

impl Default for Memory {
    /// Leaves everything to the allocator.
    fn default() -> Self {
        Self { once_serving: || {}, give_back: || {} }
    }
}
