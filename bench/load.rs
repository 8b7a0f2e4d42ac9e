//! What stands at both ends of the proxies in the benchmarks: applications, and callers of every kind.
//!
//! One file and the standard library alone (`rustc -O load.rs`), threads and blocking sockets: it must not have the
//! proxies' own libraries under it. Latency counts from the moment at which a request was to be sent, not from when it
//! was: a slow answer delays those behind it, and that is theirs too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: load backend HTTP_PORT TCP_PORT
       load rate ADDRESS HOST PATH REQUESTS_PER_SECOND CONNECTIONS SECONDS
       load one ADDRESS HOST PATH SECONDS
       load connect ADDRESS THREADS SECONDS
       load bulk ADDRESS MEBIBYTES
       load idle ADDRESS CONNECTIONS";

fn main() -> io::Result<()> {
    // Wake up when it is time, not some 50 microseconds later; threads inherit it.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["backend", http, tcp] => backend(http, tcp),
        ["rate", address, host, path, rate, connections, seconds] => {
            let request = request(host, path);
            let (rate, count) = (number(rate) as f64, number(connections));
            let for_ = Duration::from_secs(number(seconds));
            // All begin a little later, each with its own share of the first interval.
            let start = Instant::now() + Duration::from_millis(50);
            let interval = Duration::from_secs_f64(count as f64 / rate);
            let callers = (0..count).map(|index| {
                let (address, request) = (address.to_string(), request.clone());
                let first = start + interval.mul_f64(index as f64 / count as f64);
                thread::spawn(move || paced(&address, &request, first, interval, start + for_))
            });
            let callers: Vec<_> = callers.collect();
            let mut times = Vec::new();
            for caller in callers {
                times.extend(caller.join().expect("no panic")?);
            }
            report(times);
            Ok(())
        }
        ["one", address, host, path, seconds] => {
            let end = Instant::now() + Duration::from_secs(number(seconds));
            let request = request(host, path);
            let mut stream = dial(address)?;
            let mut buffer = vec![0; 65536];
            let mut times = Vec::new();
            while Instant::now() < end {
                let sent = Instant::now();
                ask(&mut stream, &request, &mut buffer)?;
                times.push(sent.elapsed());
            }
            report(times);
            Ok(())
        }
        ["connect", address, threads, seconds] => {
            let end = Instant::now() + Duration::from_secs(number(seconds));
            let made = Arc::new(AtomicU64::new(0));
            let callers: Vec<_> = (0..number(threads))
                .map(|_| {
                    let (address, made) = (address.to_string(), made.clone());
                    thread::spawn(move || -> io::Result<()> {
                        while Instant::now() < end {
                            echo(&mut dial(&address)?)?;
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            for caller in callers {
                caller.join().expect("no panic")?;
            }
            println!("{}", made.load(Ordering::Relaxed));
            Ok(())
        }
        ["bulk", address, mebibytes] => {
            let mut stream = dial(address)?;
            stream.write_all(b"d")?;
            let chunk = vec![b'x'; 256 * 1024];
            for _ in 0..number(mebibytes) * 4 {
                stream.write_all(&chunk)?;
            }
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            assert_eq!(answer, (number(mebibytes) << 20).to_string().as_bytes(), "bytes were lost");
            println!("done");
            Ok(())
        }
        ["idle", address, connections] => {
            let mut held = Vec::new();
            for _ in 0..number(connections) {
                let mut stream = dial(address)?;
                echo(&mut stream)?;
                held.push(stream);
            }
            println!("ready");
            // Until whoever started it has measured.
            io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn dial(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn request(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// Sends a request and reads the answer, which must be a 200.
fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut held = 0;
    loop {
        let count = stream.read(&mut buffer[held..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        held += count;
        let Some(head) = buffer[..held].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 200") {
            return Err(io::Error::other(text));
        }
        let length = text.split("content-length:").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.and_then(|l| l.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut left = (head + 4 + length).saturating_sub(held);
        while left > 0 {
            let upto = left.min(buffer.len());
            stream.read_exact(&mut buffer[..upto])?;
            left -= upto;
        }
        return Ok(());
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ex")?;
    stream.read_exact(&mut [0])
}

/// One connection's requests at fixed times, and how long after those times their answers were there.
fn paced(
    address: &str,
    request: &[u8],
    first: Instant,
    interval: Duration,
    end: Instant,
) -> io::Result<Vec<Duration>> {
    let mut stream = dial(address)?;
    let mut buffer = vec![0; 65536];
    // The first opens connections further on, too; it is not measured.
    ask(&mut stream, request, &mut buffer)?;
    let (mut times, mut intended) = (Vec::new(), first);
    while intended < end {
        thread::sleep(intended.saturating_duration_since(Instant::now()));
        ask(&mut stream, request, &mut buffer)?;
        times.push(intended.elapsed());
        intended += interval;
    }
    Ok(times)
}

fn report(mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_micros();
    println!("{} {} {} {}", times.len(), at(0.5), at(0.99), at(0.999));
}

/// An application of HTTP/1.1, and one of bytes: `e` echoes, `d` counts to the end.
fn backend(http: &str, tcp: &str) -> io::Result<()> {
    let answer = |size: usize| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n");
        [head.into_bytes(), vec![b'x'; size]].concat()
    };
    let answers = Arc::new([answer(12), answer(10 << 10), answer(1 << 20)]);
    let listener = TcpListener::bind(format!("127.0.0.1:{tcp}"))?;
    thread::spawn(move || serve(&listener, bytes));
    let listener = TcpListener::bind(format!("127.0.0.1:{http}"))?;
    serve(&listener, move |stream| requests(stream, &answers));
    Ok(())
}

fn serve(listener: &TcpListener, each: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
    for stream in listener.incoming().flatten() {
        let each = each.clone();
        let _ = thread::Builder::new().stack_size(128 << 10).spawn(move || each(stream));
    }
}

fn requests(mut stream: TcpStream, answers: &[Vec<u8>; 3]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut held) = (vec![0; 16384], 0);
    loop {
        let count = stream.read(&mut buffer[held..])?;
        if count == 0 {
            return Ok(());
        }
        held += count;
        while let Some(end) = buffer[..held].windows(4).position(|w| w == b"\r\n\r\n") {
            let path = buffer[..end].split(|b| *b == b' ').nth(1).unwrap_or_default();
            let answer = match path {
                b"/api/10k" => &answers[1],
                b"/api/1m" => &answers[2],
                _ => &answers[0],
            };
            stream.write_all(answer)?;
            buffer.copy_within(end + 4..held, 0);
            held -= end + 4;
        }
    }
}

fn bytes(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    let mut buffer = vec![0; if kind == *b"d" { 256 << 10 } else { 256 }];
    let mut total = 0_u64;
    loop {
        let count = stream.read(&mut buffer)?;
        match (kind, count) {
            ([b'd'], 0) => return stream.write_all(total.to_string().as_bytes()),
            (_, 0) => return Ok(()),
            ([b'd'], _) => total += count as u64,
            _ => stream.write_all(&buffer[..count])?,
        }
    }
}
