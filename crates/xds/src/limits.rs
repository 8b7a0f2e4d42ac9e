//! What one peer may cost the other.

use std::time::Duration;

/// Names one stream may be subscribed to at a time, over all types.
///
/// A proxy subscribes to the destinations its application uses; a thousand is many. The bound
/// keeps a scanning application from filling the control plane's memory.
pub const MAX_SUBSCRIPTIONS: usize = 8192;

/// Longest resource name: a host name has 253 bytes, `<namespace>/<pod>` 63 + 1 + 253.
pub const MAX_NAME_BYTES: usize = 512;

/// Types one stream may ask for; more than are defined, so that newer clients can ask older servers.
pub const MAX_TYPES: usize = 16;

/// Largest request the server reads. A resume with [`MAX_SUBSCRIPTIONS`] names of usual length fits well.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Largest response the client reads: one service of tens of thousands of endpoints.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// Size at which the server closes a response and leaves the rest to the next one.
pub const RESPONSE_TARGET_BYTES: usize = 512 << 10;

/// `system_version_info` of a response whose rest comes in the next one, so that a client that waits for a whole
/// wildcard (a set of policies is only safe when complete) knows to wait on.
pub const MORE_FOLLOWS: &str = "more-follows";

/// How long a response may stay without ack or nack before the server gives the stream up.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(30);
