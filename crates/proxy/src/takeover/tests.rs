//! Two processes' conversation, held by two tasks.

use std::net::{TcpListener, TcpStream};

use super::*;

fn handed(role: Role) -> (Handed, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let copy = listener.try_clone().expect("a copy");
    (Handed { role, socket: copy.into() }, listener)
}

#[tokio::test]
async fn sockets_change_hands_and_go_on_listening() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(SOCKET);
    assert!(find(&path).is_none(), "nobody is there yet");
    let door = Door::open(&path).expect("a door");
    // More than one packet carries.
    let (sockets, kept): (Vec<_>, Vec<_>) = (0..150).map(|_| handed(Role::Inbound)).unzip();
    let addresses: Vec<_> = kept.iter().map(|l| l.local_addr().expect("bound")).collect();
    let old = async {
        let channel = door.successor().await;
        let channel = offer(channel, || Ok(sockets)).await.expect("a successor that serves");
        drop(kept);
        channel.released().await;
    };
    let new = async {
        let channel = find(&path).expect("somebody is there");
        let taken = take(&channel).await.expect("sockets");
        confirm(&channel).await.expect("released");
        taken
    };
    let ((), taken) = tokio::join!(old, new);
    assert!(taken.iter().all(|handed| handed.role == Role::Inbound));
    let listeners: Vec<_> = taken.into_iter().map(|handed| TcpListener::from(handed.socket)).collect();
    for (listener, address) in listeners.iter().zip(addresses) {
        let _client = TcpStream::connect(address).expect("the successor listens");
        assert_eq!(listener.accept().expect("accepted").0.local_addr().expect("bound"), address);
    }
    drop(door);
    assert!(find(&path).is_none(), "a door that nobody keeps is none");
    Door::open(&path).expect("and can be opened again");
}

#[tokio::test]
async fn a_process_without_sockets_refuses_and_one_that_is_gone_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(SOCKET);
    let door = Door::open(&path).expect("a door");
    let old = async {
        let channel = door.successor().await;
        let refused = offer(channel, || Ok(Vec::new())).await;
        assert!(matches!(refused, Err(TakeoverError::Refused(_))), "{refused:?}");
        let second = door.successor().await;
        drop(second);
    };
    let new = async {
        let channel = find(&path).expect("somebody is there");
        let refused = take(&channel).await;
        assert!(matches!(refused, Err(TakeoverError::Refused(_))), "{refused:?}");
        let channel = find(&path).expect("somebody is there");
        channel.gone().await;
        assert!(matches!(take(&channel).await, Err(TakeoverError::Gone)));
    };
    tokio::join!(old, new);
}

#[tokio::test]
async fn a_successor_that_dies_leaves_everything_as_it_was() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(SOCKET);
    let door = Door::open(&path).expect("a door");
    let (socket, kept) = handed(Role::Readiness);
    let old = async { offer(door.successor().await, || Ok(vec![socket])).await };
    let new = async { take(&find(&path).expect("somebody is there")).await };
    let (offered, taken) = tokio::join!(old, new);
    assert_eq!(taken.expect("sockets").len(), 1);
    assert!(matches!(offered, Err(TakeoverError::Gone)), "{offered:?}");
    TcpStream::connect(kept.local_addr().expect("bound")).expect("the old one still listens");
}
