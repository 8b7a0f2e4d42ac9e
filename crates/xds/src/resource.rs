use prost_types::Any;

/// One resource as it travels: a name, the version of its content, and the message.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Unique within its type.
    pub name: String,
    /// Changes when the content does; opaque to the client.
    pub version: String,
    /// The message with its type URL.
    pub body: Any,
}

/// What one response changes, of one type.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Update {
    /// The type of all that follows.
    pub type_url: String,
    /// New or changed resources, each only once.
    pub resources: Vec<Resource>,
    /// Names that do not exist, or no longer for this subscriber.
    pub removed: Vec<String>,
    /// The rest of what the server owes comes in a further update ([`crate::limits::MORE_FOLLOWS`]).
    pub more_follows: bool,
}

/// One resource that the client does not accept; the others of its response hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The resource's name.
    pub name: String,
    /// Why, for the people who read the control plane's log.
    pub reason: String,
}

impl Rejection {
    /// A rejection of `name`.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), reason: reason.into() }
    }
}
