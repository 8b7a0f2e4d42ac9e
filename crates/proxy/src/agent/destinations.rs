//! Destinations on demand: asked for at first use, kept current while used, given up when not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use maille_xds::{Client, SubscribeError, type_urls};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::snapshot::{Destination, DestinationCell, ResolveError, Resolver, Resolving};
use crate::upkeep::{Credentials, Following, Upkeep};

/// Destinations held at a time. One that was used longest ago makes room.
const MAX_DESTINATIONS: usize = 4096;

/// How often unused destinations are looked for.
pub(crate) const SWEEP: Duration = Duration::from_secs(60);
/// Sweeps without a use after which a destination is given up.
const IDLE_SWEEPS: u8 = 10;

/// What became of a question.
#[derive(Debug, Clone)]
enum Answer {
    Pending,
    /// The control plane has answered with names, which are being looked up.
    LookingUp,
    Known,
    Refused(String),
}

impl Answer {
    fn is_final(&self) -> bool {
        matches!(self, Self::Known | Self::Refused(_))
    }
}

struct Entry {
    cell: Option<Arc<DestinationCell>>,
    answer: watch::Sender<Answer>,
    /// Last use seen by the sweeper, in the workers' clock, and for how many sweeps it has not moved.
    last_used: u64,
    idle_sweeps: u8,
    /// Of a destination whose endpoints are names.
    following: Option<Following>,
}

impl Entry {
    fn put(&mut self, destination: Destination) {
        let destination = Arc::new(destination);
        match &self.cell {
            Some(cell) => cell.replace(destination),
            None => self.cell = Some(Arc::new(DestinationCell::new(destination))),
        }
        self.answer.send_replace(Answer::Known);
    }

    fn new() -> Self {
        Self {
            cell: None,
            answer: watch::Sender::new(Answer::Pending),
            last_used: 0,
            idle_sweeps: 0,
            following: None,
        }
    }
}

/// The destinations that somebody asked for. The agent writes, workers read; a worker comes here only for a name
/// that it does not hold a cell of.
pub(crate) struct Destinations {
    client: Client,
    wait: Duration,
    /// Whether the application dials addresses that the mesh gives it, since its DNS questions are answered here.
    gives_addresses: bool,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    upkeep: Arc<Upkeep>,
    /// Why the control plane cannot be asked, while it cannot.
    outage: Mutex<Option<String>>,
}

impl Destinations {
    /// None yet; questions go through `client` and wait for `wait` at most. `gives_addresses`: whether the application's
    /// DNS questions are answered here.
    pub(crate) fn new(client: Client, wait: Duration, gives_addresses: bool, upkeep: Arc<Upkeep>) -> Self {
        let asking = client.clone();
        upkeep.credentials().asks(Box::new(move |name, is_wanted| match is_wanted {
            // One that cannot be asked for stays without an answer, and its hosts are refused.
            true => drop(asking.subscribe(type_urls::CREDENTIAL, name)),
            false => asking.unsubscribe(type_urls::CREDENTIAL, name),
        }));
        Self {
            client,
            wait,
            gives_addresses,
            entries: Arc::default(),
            upkeep,
            outage: Mutex::new(Some("not connected yet".to_owned())),
        }
    }

    /// Keys and certificates that their rules name.
    pub(crate) fn credentials(&self) -> &Credentials {
        self.upkeep.credentials()
    }

    /// How many are held or asked for.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Names held or asked for.
    pub(crate) fn names(&self) -> HashSet<String> {
        self.entries.lock().keys().cloned().collect()
    }

    /// Says why questions go unanswered, or that they are answered again.
    pub(crate) fn outage(&self, reason: Option<String>) {
        *self.outage.lock() = reason;
    }

    /// Subscribes to a name known from an earlier life; the cell comes with [`Self::update`].
    pub(crate) fn restore(&self, name: &str) -> Result<(), SubscribeError> {
        self.client.subscribe(type_urls::DESTINATION, name)?;
        self.entries.lock().entry(name.to_owned()).or_insert_with(Entry::new);
        Ok(())
    }

    /// The control plane's answer, or a change of it. One whose endpoints are names is known once they have been looked
    /// up.
    pub(crate) fn update(&self, name: &str, destination: Destination) {
        if !self.entries.lock().contains_key(name) {
            // Given up meanwhile: nobody wants to know any more.
            return;
        }
        let (entries, held) = (Arc::downgrade(&self.entries), name.to_owned());
        let publish = Box::new(move |destination| {
            let Some(entries) = entries.upgrade() else { return };
            if let Some(entry) = entries.lock().get_mut(&held) {
                entry.put(destination);
            }
        });
        let following = self.upkeep.take(name, destination, publish);
        if let Some(entry) = self.entries.lock().get_mut(name) {
            if following.is_some() && entry.cell.is_none() {
                entry.answer.send_replace(Answer::LookingUp);
            }
            // Only now is what was followed before given up, so that names in both are not looked up anew.
            entry.following = following;
        }
    }

    /// The answer could not be used; what was known stays.
    pub(crate) fn refuse(&self, name: &str, reason: &str) {
        if let Some(entry) = self.entries.lock().get_mut(name)
            && entry.cell.is_none()
        {
            entry.answer.send_replace(Answer::Refused(reason.to_owned()));
        }
    }

    /// The control plane has nothing more to say of the name. Not the same as `Unknown`, which it would say: the name is
    /// forgotten, and whoever needs it asks anew.
    pub(crate) fn remove(&self, name: &str) {
        let removed = self.entries.lock().remove(name);
        if let Some(entry) = removed {
            if let Some(cell) = &entry.cell {
                cell.retire();
            }
            entry.answer.send_replace(Answer::Refused("the control plane withdrew it".to_owned()));
            self.client.unsubscribe(type_urls::DESTINATION, name);
        }
    }

    /// Gives up what has not been used for a while. To be called every [`SWEEP`]. Returns the names.
    pub(crate) fn sweep(&self) -> Vec<String> {
        let mut gone = Vec::new();
        self.entries.lock().retain(|name, entry| {
            let used = entry.cell.as_ref().map_or(0, |cell| cell.last_used_s());
            if used != entry.last_used || (entry.cell.is_none() && entry.answer.receiver_count() > 0) {
                entry.last_used = used;
                entry.idle_sweeps = 0;
            } else {
                entry.idle_sweeps = entry.idle_sweeps.saturating_add(1);
            }
            let keep = entry.idle_sweeps < IDLE_SWEEPS;
            if !keep {
                if let Some(cell) = &entry.cell {
                    cell.retire();
                }
                gone.push(name.clone());
            }
            keep
        });
        for name in &gone {
            self.client.unsubscribe(type_urls::DESTINATION, name);
        }
        self.upkeep.credentials().sweep();
        gone
    }

    /// Asks for a name, unless it is asked for already.
    fn ask(&self, name: &str) -> Result<watch::Receiver<Answer>, SubscribeError> {
        let mut entries = self.entries.lock();
        if !entries.contains_key(name) && entries.len() >= MAX_DESTINATIONS {
            self.make_room(&mut entries)?;
        }
        self.client.subscribe(type_urls::DESTINATION, name)?;
        let entry = entries.entry(name.to_owned()).or_insert_with(Entry::new);
        Ok(entry.answer.subscribe())
    }

    fn make_room(&self, entries: &mut HashMap<String, Entry>) -> Result<(), SubscribeError> {
        let oldest = entries
            .iter()
            .filter(|(_, entry)| entry.answer.receiver_count() == 0)
            .min_by_key(|(_, entry)| entry.cell.as_ref().map_or(0, |cell| cell.last_used_s()))
            .map(|(name, _)| name.clone())
            .ok_or(SubscribeError::TooMany)?;
        if let Some(cell) = entries.remove(&oldest).and_then(|entry| entry.cell) {
            cell.retire();
        }
        self.client.unsubscribe(type_urls::DESTINATION, &oldest);
        Ok(())
    }

    async fn wait_for(&self, name: &str) -> Result<Arc<DestinationCell>, ResolveError> {
        let refused = |reason: String| ResolveError::Refused { name: name.to_owned(), reason };
        let mut answer = self.ask(name).map_err(|e| refused(e.to_string()))?;
        let waiting = tokio::time::timeout(self.wait, answer.wait_for(Answer::is_final));
        let outcome = waiting.await.map(|said| said.map(|said| said.clone()));
        let said = match outcome {
            Ok(Ok(said)) => said,
            Ok(Err(_)) => return Err(refused("it was given up meanwhile".to_owned())),
            Err(_) => answer.borrow().clone(),
        };
        match said {
            Answer::Known => {}
            Answer::Refused(reason) => return Err(refused(reason)),
            Answer::LookingUp => {
                let reason = format!("names of its endpoints were not looked up within {:?}", self.wait);
                return Err(refused(reason));
            }
            Answer::Pending => {
                let outage = self.outage.lock().clone();
                let reason = outage.unwrap_or_else(|| format!("no answer within {:?}", self.wait));
                return Err(ResolveError::Unreachable { name: name.to_owned(), reason });
            }
        }
        self.lookup(name).ok_or_else(|| refused("it was given up meanwhile".to_owned()))
    }
}

impl Resolver for Destinations {
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>> {
        self.entries.lock().get(name)?.cell.clone()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            match self.lookup(name) {
                Some(cell) => Ok(cell),
                None => self.wait_for(name).await,
            }
        })
    }

    fn name_of_port(&self, port: u16) -> String {
        format!("*:{port}{}", if self.gives_addresses { "/dns" } else { "" })
    }

    fn prefetch(&self, name: &str) {
        // Strangers who call in must not push out what the application calls.
        if self.len() < MAX_DESTINATIONS / 2 {
            // A name that cannot be asked for stays without an answer, which is no harm here.
            let _ = self.ask(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upkeep::Servers;
    use maille_xds::ClientOptions;

    fn destinations(wait_ms: u64) -> Arc<Destinations> {
        let (client, _driver) = Client::new(&ClientOptions::new("test"));
        let upkeep = Upkeep::new(Servers::These(Vec::new()));
        Arc::new(Destinations::new(client, Duration::from_millis(wait_ms), false, upkeep))
    }

    #[tokio::test]
    async fn a_name_that_nobody_can_be_asked_about_is_an_error_and_not_unknown() {
        let held = destinations(20);
        held.outage(Some("connection refused".to_owned()));
        let error = held.resolve("10.0.0.1").await.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("10.0.0.1") && error.contains("connection refused"), "{error}");
    }

    #[tokio::test]
    async fn one_question_serves_all_who_wait_and_later_ones() {
        let held = destinations(10_000);
        let (first, second) = (held.clone(), held.clone());
        let waiters = [
            tokio::spawn(async move { first.resolve("cart").await.is_ok() }),
            tokio::spawn(async move { second.resolve("cart").await.is_ok() }),
        ];
        while held.len() == 0 {
            tokio::task::yield_now().await;
        }
        held.update("cart", Destination::Unknown);
        for waiter in waiters {
            assert!(waiter.await.expect("no panic"));
        }
        assert!(held.lookup("cart").is_some());
        held.update("never-asked", Destination::Unknown);
        assert!(held.lookup("never-asked").is_none(), "answers nobody asked for are dropped");
    }

    #[tokio::test]
    async fn a_refused_answer_is_an_error_at_once_and_a_good_one_repairs_it() {
        let held = destinations(10_000);
        held.restore("cart").expect("fits");
        held.refuse("cart", "kind: missing");
        let error = held.resolve("cart").await.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("kind: missing"), "{error}");
        held.update("cart", Destination::Unknown);
        held.refuse("cart", "kind: missing");
        assert!(held.resolve("cart").await.is_ok(), "the last good answer stays");
    }

    fn by_name(dns_name: &str) -> Destination {
        let message = maille_proto::facts::Service {
            hostname: "api.example.com".into(),
            service_entry: "production/api".into(),
            resolution: maille_proto::facts::Resolution::Dns.into(),
            endpoints: vec![maille_proto::facts::Endpoint {
                dns_name: dns_name.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let kind = Some(maille_proto::facts::destination::Kind::Service(message));
        crate::facts::destination(&maille_proto::facts::Destination { kind }).expect("valid")
    }

    #[tokio::test]
    async fn a_destination_of_names_is_known_when_they_have_been_looked_up() {
        // Nobody listens there, so the look-up fails, which is an outcome too.
        let held = destinations(10_000);
        held.restore("api.example.com").expect("fits");
        held.update("api.example.com", by_name("api.example.com"));
        assert!(held.lookup("api.example.com").is_none(), "not before the names were looked up");
        let cell = held.resolve("api.example.com").await.expect("known");
        let Destination::Service(service) = &**cell.load() else { panic!("a service") };
        let failure = service.lookup_failure.as_deref().unwrap_or_default();
        assert!(service.endpoints.is_empty() && failure.contains("api.example.com"), "{failure}");
        // The next answer may need no names, and what was followed is given up.
        held.update("api.example.com", Destination::Unknown);
        assert!(matches!(**cell.load(), Destination::Unknown));
        assert!(held.entries.lock().values().all(|entry| entry.following.is_none()));
    }

    #[test]
    fn what_is_prefetched_is_there_for_the_next_one_and_never_pushes_others_out() {
        let held = destinations(10);
        held.prefetch("10.0.0.9");
        assert!(held.lookup("10.0.0.9").is_none());
        held.update("10.0.0.9", Destination::Unknown);
        assert!(held.lookup("10.0.0.9").is_some());
        for n in 0..MAX_DESTINATIONS {
            held.prefetch(&format!("stranger-{n}"));
        }
        assert_eq!(held.len(), MAX_DESTINATIONS / 2);
    }

    #[test]
    fn unused_destinations_are_given_up_and_their_cells_retired() {
        let held = destinations(10);
        for name in ["used", "idle"] {
            held.restore(name).expect("fits");
            held.update(name, Destination::Unknown);
        }
        let idle = held.lookup("idle").expect("known");
        let mut gone = Vec::new();
        for second in 1..=u64::from(IDLE_SWEEPS) + 1 {
            held.lookup("used").expect("still known").touch(second);
            gone.extend(held.sweep());
        }
        assert_eq!(gone, ["idle"]);
        assert!(idle.is_retired() && held.lookup("idle").is_none());
    }

    #[test]
    fn the_bound_holds_and_the_least_recently_used_makes_room() {
        let held = destinations(10);
        for n in 0..MAX_DESTINATIONS {
            let name = format!("h{n}");
            drop(held.ask(&name).expect("fits"));
            held.update(&name, Destination::Unknown);
            held.lookup(&name).expect("known").touch(n as u64 + 1);
        }
        drop(held.ask("one-more").expect("the oldest makes room"));
        assert_eq!(held.len(), MAX_DESTINATIONS);
        assert!(held.lookup("h0").is_none());
    }
}
