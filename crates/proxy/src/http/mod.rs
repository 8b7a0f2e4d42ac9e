//! HTTP as the proxy sees it: heads checked once, judged as they are forwarded, bodies passed through.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod inbound;
pub(crate) mod line;
pub(crate) mod linger;
pub(crate) mod outbound;
pub(crate) mod pace;
pub(crate) mod received;
pub(crate) mod reply;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod upgrade;
pub(crate) mod websocket;
pub(crate) mod write_first;
pub(crate) mod xfcc;
