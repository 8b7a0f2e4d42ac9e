use super::super::lookup::LookingUp;
use super::*;

/// Answers by a script, the last answer for ever.
struct Script {
    answers: Mutex<Vec<Result<Found, LookupError>>>,
    asked: Mutex<usize>,
}

impl Script {
    fn new(answers: Vec<Result<Found, LookupError>>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers), asked: Mutex::default() })
    }
}

impl LookUp for Script {
    fn look_up<'a>(&'a self, _name: &'a str) -> LookingUp<'a> {
        *self.asked.lock() += 1;
        let mut answers = self.answers.lock();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async move { answer })
    }
}

fn found(last: u8, seconds: u64) -> Result<Found, LookupError> {
    Ok(Found { addresses: vec![IpAddr::from([192, 0, 2, last])], good_for: Duration::from_secs(seconds) })
}

fn away() -> Result<Found, LookupError> {
    Err(LookupError::Away("timed out".to_owned()))
}

fn last_byte(known: &Option<Known>) -> Option<u8> {
    match known.as_ref()?.addresses.first()? {
        IpAddr::V4(address) => Some(address.octets()[3]),
        IpAddr::V6(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_used_for_its_ttl_and_then_asked_for_again() {
    let script = Script::new(vec![found(1, 30), found(2, 30)]);
    let names = Names::new(script.clone());
    let mut known = names.follow(&"api.example.com".into());
    known.wait_for(|k| last_byte(k) == Some(1)).await.expect("looked up");
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(*script.asked.lock(), 1);
    known.wait_for(|k| last_byte(k) == Some(2)).await.expect("looked up again");
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_stays_while_the_servers_are_away_but_not_when_they_say_that_it_is_gone() {
    let gone = Err(LookupError::NoAddress("there is no such name".to_owned()));
    let script = Script::new(vec![found(1, 1), away(), away(), gone.clone(), found(3, 600)]);
    let names = Names::new(script.clone());
    let mut known = names.follow(&"api.example.com".into());
    known.wait_for(|k| last_byte(k) == Some(1)).await.expect("looked up");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!((*script.asked.lock(), last_byte(&known.borrow())), (3, Some(1)));
    let failed = known.wait_for(|k| k.as_ref().is_some_and(|k| k.failure.is_some())).await.expect("told");
    let failure = failed.as_ref().and_then(|k| k.failure.clone()).unwrap_or_default();
    assert!(failure.contains("api.example.com") && failure.contains("no such name"), "{failure}");
    drop(failed);
    known.wait_for(|k| last_byte(k) == Some(3)).await.expect("back again");
}

#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_once_for_all_and_given_up_when_nobody_listens() {
    let script = Script::new(vec![found(1, 5)]);
    let names = Names::new(script.clone());
    let (mut one, two) = (names.follow(&"a".into()), names.follow(&"a".into()));
    one.wait_for(Option::is_some).await.expect("looked up");
    assert_eq!((*script.asked.lock(), last_byte(&two.borrow())), (1, Some(1)));
    drop((one, two));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(names.held.lock().is_empty());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*script.asked.lock(), 1, "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_and_kept_is_bounded() {
    let many: Vec<_> = (0..=255).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let script = Script::new(vec![Ok(Found { addresses: many, good_for: Duration::ZERO })]);
    let names = Names::new(script.clone());
    let mut known = names.follow(&"a".into());
    let addresses = known.wait_for(Option::is_some).await.expect("looked up").clone();
    assert_eq!(addresses.map(|k| k.addresses.len()), Some(MAX_ADDRESSES));
    tokio::time::sleep(Duration::from_millis(9_500)).await;
    assert!(*script.asked.lock() <= 10, "a TTL of zero must not make a storm: {}", *script.asked.lock());
    let held: Vec<_> = (0..MAX_NAMES).map(|n| names.follow(&format!("n{n}").into())).collect();
    let over = held.last().and_then(|last| last.borrow().clone()).and_then(|k| k.failure);
    assert!(over.is_some_and(|why| why.contains("more than")), "one name beyond the bound is refused");
}
