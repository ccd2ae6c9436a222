//! Pages of roles' own: long answers, slow and absent readers, failures in the middle.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_runtime::{Ending, PageBody, PageRefusal, PageRequest, PageWriter, Process};

use crate::toys::{First, get, in_background, on_start, start, wait_until};

type Written = io::Result<()>;

/// A process with a page that is written by this.
fn with_page(
    at_a_time: usize,
    page: impl Fn(&PageRequest) -> Result<PageBody, PageRefusal> + Send + Sync + 'static,
) -> (SocketAddr, impl FnOnce()) {
    on_start("first", move |scope| {
        scope.page("/page", at_a_time, page);
        Ok(scope.idle()?)
    });
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    (address, move || {
        stop.stop("the test");
        assert_eq!(ended.join().unwrap(), Ending::Done);
    })
}

fn written_by(
    write: impl Fn(&mut PageWriter) -> Written + Send + Sync + 'static,
) -> impl Fn(&PageRequest) -> Result<PageBody, PageRefusal> {
    let write = Arc::new(write);
    move |_| {
        let write = Arc::clone(&write);
        Ok(PageBody { content_type: "text/plain", write: Box::new(move |writer| write(writer)) })
    }
}

fn ask(address: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// The bytes of an answer, head and all; where it was reset, what came until then.
fn all_of(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn is_whole(answer: &[u8]) -> bool {
    answer.ends_with(b"\r\n0\r\n\r\n")
}

#[test]
fn a_long_answer_is_streamed_and_its_parameters_are_decoded() {
    let (address, end) = with_page(1, |request| {
        let asked: Vec<String> = request.parameters().map(|(name, value)| format!("{name}={value}")).collect();
        let write = move |writer: &mut PageWriter| {
            writeln!(writer, "{}", asked.join(";"))?;
            (0..500_000).try_for_each(|number| writeln!(writer, "{number:0100}"))
        };
        Ok(PageBody { content_type: "application/x-ndjson", write: Box::new(write) })
    });
    let answer = all_of(ask(address, "/page?text=a%2fb+c&limit=3"));
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("application/x-ndjson"), "{}", &text[..200]);
    assert!(text.contains("text=a/b c;limit=3\n"));
    assert!(answer.len() > 50_000_000 && is_whole(&answer));
    assert_eq!(get(address, "/page?text=%").0, 400);
    assert_eq!(get(address, "/pages").0, 404);
    end();
}

#[test]
fn a_page_may_say_no() {
    let refuse = |_: &PageRequest| Err(PageRefusal { status: 400, message: "limit: expected a number".to_owned() });
    let (address, end) = with_page(1, refuse);
    for _ in 0..3 {
        assert_eq!(get(address, "/page"), (400, "limit: expected a number\n".to_owned()));
    }
    end();
}

#[test]
fn beyond_its_threads_a_page_is_refused_and_probes_are_answered() {
    let go_on = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&go_on);
    let (address, end) = with_page(
        2,
        written_by(move |writer| {
            writer.write_all(b"begun\n")?;
            writer.flush()?;
            while !waits.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            writer.write_all(b"ended\n")
        }),
    );
    let busy: Vec<TcpStream> = (0..2).map(|_| ask(address, "/page")).collect();
    wait_until("both are being made", || get(address, "/page").0 == 503);
    // A crowd that says nothing does not take their connections.
    let _crowd: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let asked_at = Instant::now();
    for path in ["/healthz", "/readyz", "/metrics", "/status"] {
        assert_eq!(get(address, path).0, 200, "{path}");
    }
    assert!(asked_at.elapsed() < Duration::from_secs(8), "{:?}", asked_at.elapsed());
    go_on.store(true, Ordering::Relaxed);
    for stream in busy {
        let answer = all_of(stream);
        assert!(is_whole(&answer) && String::from_utf8_lossy(&answer).contains("ended"));
    }
    wait_until("a thread to be free", || get(address, "/page").0 == 200);
    end();
}

#[test]
fn what_goes_wrong_in_the_middle_cuts_the_answer_off() {
    type Write = fn(&mut PageWriter) -> Written;
    let wrong: [(&str, Write); 2] = [
        ("an error", |writer| {
            writer.write_all(&[b'x'; 100_000])?;
            Err(io::Error::other("a disk that fails"))
        }),
        ("a panic", |writer| {
            writer.write_all(&[b'x'; 100_000])?;
            panic!("a page that panics, on purpose")
        }),
    ];
    for (what, write) in wrong {
        let (address, end) = with_page(1, written_by(write));
        let answer = all_of(ask(address, "/page"));
        // Of what was not on its way yet nothing comes.
        assert!(!is_whole(&answer) && !answer.starts_with(b"HTTP/1.1 5"), "{what}");
        wait_until("its thread to be free", || get(address, "/healthz").0 == 200);
        end();
    }
    let (address, end) = with_page(1, |_| panic!("a page that panics at once, on purpose"));
    for _ in 0..3 {
        assert_eq!(get(address, "/page").0, 500);
    }
    end();
}

#[test]
fn what_goes_wrong_before_anything_was_sent_is_an_answer_of_its_own() {
    let wrong: [fn(&mut PageWriter) -> Written; 2] = [
        |writer| {
            writer.write_all(b"a little")?;
            Err(io::Error::other("a disk that fails"))
        },
        |_| panic!("a page that panics, on purpose"),
    ];
    for write in wrong {
        let (address, end) = with_page(1, written_by(write));
        for _ in 0..3 {
            assert_eq!(get(address, "/page"), (500, "this page failed\n".to_owned()));
        }
        end();
    }
}

#[test]
fn a_page_is_there_to_get_and_in_chunks() {
    let (address, end) = with_page(1, written_by(|writer| writer.write_all(b"x")));
    let status_of = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8_lossy(&all_of(stream)).split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status_of("GET /page HTTP/1.1"), "200");
    assert_eq!(status_of("HEAD /page HTTP/1.1"), "405");
    assert_eq!(status_of("POST /page HTTP/1.1"), "405");
    assert_eq!(status_of("POST /none HTTP/1.1"), "404");
    assert_eq!(status_of("GET /page HTTP/1.0"), "505", "an answer without chunks that was cut off would look whole");
    assert_ne!(status_of(&format!("GET /page?{} HTTP/1.1", "x".repeat(20_000))), "200");
    end();
}

#[test]
fn a_path_is_one_pages() {
    for twice in [&["/metrics"][..], &["/page", "/page"]] {
        on_start("first", move |scope| {
            for path in twice {
                scope.page(path, 1, written_by(|_| Ok(())));
            }
            Ok(scope.idle()?)
        });
        let started = std::panic::catch_unwind(|| drop(start(Process::of::<First>(), &[])));
        assert!(started.is_err(), "{twice:?}");
    }
}

/// A peer that the kernel takes little for.
fn ask_with_little_room(address: SocketAddr, target: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// Reads slowly and steadily, some 20 kB/s, for longer than a peer may pause, and then what is left.
fn read_slowly(mut stream: TcpStream) -> Vec<u8> {
    let (mut answer, mut piece, started) = (Vec::new(), [0; 2048], Instant::now());
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return answer,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
        }
        if started.elapsed() < Duration::from_secs(22) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_slow_reader_gets_everything_and_of_what_failed_no_end() {
    // More than is under way at a time, so that whoever writes waits for the reader.
    let (address, end) = with_page(2, |request| {
        let fails = request.parameters().next().is_some();
        let write = move |writer: &mut PageWriter| {
            writer.write_all(&vec![b'x'; 1_500_000])?;
            if fails { Err(io::Error::other("a disk that fails")) } else { Ok(()) }
        };
        Ok(PageBody { content_type: "text/plain", write: Box::new(write) })
    });
    let failing = std::thread::spawn(move || read_slowly(ask_with_little_room(address, "/page?fails")));
    let whole = read_slowly(ask_with_little_room(address, "/page"));
    assert!(is_whole(&whole) && whole.len() > 1_500_000, "{}", whole.len());
    let failed = failing.join().unwrap();
    assert!(failed.starts_with(b"HTTP/1.1 200 ") && !is_whole(&failed), "{}", failed.len());
    end();
}

#[test]
fn a_page_that_is_made_and_not_taken_counts_until_its_connection_ends() {
    let (address, end) = with_page(1, written_by(|writer| writer.write_all(&vec![b'x'; 400_000])));
    let stream = ask_with_little_room(address, "/page");
    wait_until("it is under way", || get(address, "/page").0 == 503);
    // Long enough for whoever writes to have done so: what is under way is more than the kernel takes.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(get(address, "/page").0, 503);
    assert!(is_whole(&all_of(stream)));
    wait_until("its place to be free", || get(address, "/page").0 == 200);
    end();
}

#[test]
fn whoever_leaves_is_noticed() {
    let (begun, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, leaves) = (Arc::clone(&begun), Arc::clone(&left));
    let (address, end) = with_page(
        2,
        written_by(move |writer| {
            // A search that finds nothing.
            writer.write_all(b"x")?;
            writer.flush()?;
            begins.fetch_add(1, Ordering::Relaxed);
            while writer.is_wanted() {
                std::thread::sleep(Duration::from_millis(1));
            }
            leaves.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }),
    );
    for count in 1..4 {
        let stream = ask(address, "/page");
        wait_until("it has begun", || begun.load(Ordering::Relaxed) == count);
        drop(stream);
        wait_until("it is noticed", || left.load(Ordering::Relaxed) == count);
    }
    end();
}

#[test]
fn a_reader_that_stops_is_left_and_a_slow_one_is_not() {
    let failed = Arc::new(AtomicUsize::new(0));
    let fails = Arc::clone(&failed);
    let (address, end) = with_page(
        2,
        written_by(move |writer| {
            let written = (0..300).try_for_each(|_| writer.write_all(&[b'x'; 100_000]));
            if written.is_err() {
                fails.fetch_add(1, Ordering::Relaxed);
            }
            written
        }),
    );
    let stopped = ask(address, "/page");
    let mut slow = ask(address, "/page");
    // Longer than a stall may last, and never so long at once.
    let (started, mut piece, mut bytes) = (Instant::now(), vec![0; 1 << 20], 0);
    loop {
        let length = slow.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        bytes += length;
        if started.elapsed() < Duration::from_secs(11) {
            std::thread::sleep(Duration::from_millis(400));
        }
    }
    assert!(bytes > 30_000_000, "{bytes}");
    wait_until("the one that takes nothing is left", || failed.load(Ordering::Relaxed) == 1);
    drop(stopped);
    end();
}

#[test]
fn a_process_that_ends_does_not_wait_for_a_page() {
    let (address, end) = with_page(
        1,
        written_by(|writer| {
            loop {
                writer.write_all(&[b'x'; 1000])?;
            }
        }),
    );
    let stream = ask(address, "/page");
    let mut first = [0; 1];
    (&stream).read_exact(&mut first).unwrap();
    let stopped_at = Instant::now();
    end();
    assert!(stopped_at.elapsed() < Duration::from_secs(5), "{:?}", stopped_at.elapsed());
    assert!(!is_whole(&all_of(stream)));
}
