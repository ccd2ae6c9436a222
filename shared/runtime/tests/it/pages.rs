//! The pages of roles: long responses, slow and absent readers, failures in the middle.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_runtime::{Ending, PageBody, PageError, PageRequest, PageWriter, Process, SiteResponse};

use crate::toys::{First, get, in_background, on_start, start, wait_until};

type Written = io::Result<()>;

/// A process with this page, and a function that stops it.
fn with_page(
    limit: usize,
    page: impl Fn(&PageRequest) -> Result<PageBody, PageError> + Send + Sync + 'static,
) -> (SocketAddr, impl FnOnce()) {
    on_start("first", move |scope| {
        scope.page("/page", limit, page);
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
) -> impl Fn(&PageRequest) -> Result<PageBody, PageError> {
    let write = Arc::new(write);
    move |_| {
        let write = Arc::clone(&write);
        Ok(PageBody { content_type: "text/plain", write: Box::new(move |writer| write(writer)) })
    }
}

fn ask(address: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// The bytes of a response with its head; after a reset, those received until then.
fn all_of(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn is_whole(answer: &[u8]) -> bool {
    answer.ends_with(b"\r\n0\r\n\r\n")
}

#[test]
fn long_answer_is_streamed_and_its_parameters_are_decoded() {
    let (address, end) = with_page(1, |request| {
        let asked: Vec<String> =
            request.parameters().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value))).collect();
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
fn page_may_return_an_error() {
    let reject = |_: &PageRequest| Err(PageError { status: 400, message: "limit: expected a number".to_owned() });
    let (address, end) = with_page(1, reject);
    for _ in 0..3 {
        assert_eq!(get(address, "/page"), (400, "limit: expected a number\n".to_owned()));
    }
    end();
}

#[test]
fn excess_requests_get_503_and_probes_are_answered() {
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
    wait_until("both pages are being made", || get(address, "/page").0 == 503);
    // Silent connections do not replace those of the pages.
    let _silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    for path in ["/healthz", "/readyz", "/metrics", "/status"] {
        assert_eq!(get(address, path).0, 200, "{path}");
    }
    go_on.store(true, Ordering::Relaxed);
    for stream in busy {
        let answer = all_of(stream);
        assert!(is_whole(&answer) && String::from_utf8_lossy(&answer).contains("ended"));
    }
    wait_until("a permit is free", || get(address, "/page").0 == 200);
    end();
}

#[test]
fn failure_after_the_head_truncates_the_answer() {
    type Write = fn(&mut PageWriter) -> Written;
    let wrong: [(&str, Write); 2] = [
        ("an error", |writer| {
            writer.write_all(&[b'x'; 100_000])?;
            Err(io::Error::other("the disk has failed"))
        }),
        ("a panic", |writer| {
            writer.write_all(&[b'x'; 100_000])?;
            panic!("a page that panics, on purpose")
        }),
    ];
    for (what, write) in wrong {
        let (address, end) = with_page(1, written_by(write));
        let answer = all_of(ask(address, "/page"));
        // The data that was not sent yet is dropped.
        assert!(!is_whole(&answer) && !answer.starts_with(b"HTTP/1.1 5"), "{what}");
        assert_eq!(get(address, "/healthz").0, 200);
        end();
    }
    let (address, end) = with_page(1, |_| panic!("a page that panics at once, on purpose"));
    for _ in 0..3 {
        assert_eq!(get(address, "/page").0, 500);
    }
    end();
}

#[test]
fn failure_before_the_head_gets_500() {
    let wrong: [fn(&mut PageWriter) -> Written; 2] = [
        |writer| {
            writer.write_all(b"a little")?;
            Err(io::Error::other("the disk has failed"))
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
fn page_needs_get_and_http_1_1() {
    let (address, end) = with_page(1, written_by(|writer| writer.write_all(b"x")));
    let status_of = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        // The server may close the connection before it has read a request that is too large.
        let _ = write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        String::from_utf8_lossy(&all_of(stream)).split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status_of("GET /page HTTP/1.1"), "200");
    assert_eq!(status_of("HEAD /page HTTP/1.1"), "405");
    assert_eq!(status_of("POST /page HTTP/1.1"), "405");
    assert_eq!(status_of("POST /none HTTP/1.1"), "404");
    assert_eq!(status_of("GET /page HTTP/1.0"), "505", "a truncated answer without chunks would look complete");
    assert_ne!(status_of(&format!("GET /page?{} HTTP/1.1", "x".repeat(20_000))), "200");
    end();
}

#[test]
fn path_cannot_be_used_twice() {
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

/// A request over a socket with a small receive buffer.
fn ask_with_little_room(address: SocketAddr, target: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// Reads slowly and steadily, about 20 kB/s, for longer than a client may stall, and then the rest.
fn read_slowly(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut piece = [0; 2048];
    let started = Instant::now();
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
fn slow_reader_gets_a_complete_or_a_truncated_answer() {
    // More than all buffers can hold, so the writer waits for the reader.
    let (address, end) = with_page(2, |request| {
        let fails = request.parameters().next().is_some();
        let write = move |writer: &mut PageWriter| {
            writer.write_all(&vec![b'x'; 1_500_000])?;
            if fails { Err(io::Error::other("the disk has failed")) } else { Ok(()) }
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
fn page_counts_until_its_connection_is_closed() {
    let (address, end) = with_page(1, written_by(|writer| writer.write_all(&vec![b'x'; 400_000])));
    let stream = ask_with_little_room(address, "/page");
    wait_until("it is being sent", || get(address, "/page").0 == 503);
    // Long enough for the writer to finish: the rest is more than the kernel buffers.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(get(address, "/page").0, 503);
    assert!(is_whole(&all_of(stream)));
    wait_until("its permit is free", || get(address, "/page").0 == 200);
    end();
}

#[test]
fn client_that_leaves_is_noticed() {
    let begun = Arc::new(AtomicUsize::new(0));
    let left = Arc::new(AtomicUsize::new(0));
    let begins = Arc::clone(&begun);
    let leaves = Arc::clone(&left);
    let (address, end) = with_page(
        2,
        written_by(move |writer| {
            // A search without results.
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
        wait_until("the page has begun", || begun.load(Ordering::Relaxed) == count);
        drop(stream);
        wait_until("the writer has noticed", || left.load(Ordering::Relaxed) == count);
    }
    end();
}

#[test]
fn stalled_reader_is_cut_off_and_a_slow_one_is_not() {
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
    // For longer than a stall may last, but with shorter pauses.
    let started = Instant::now();
    let mut piece = vec![0; 1 << 20];
    let mut bytes = 0;
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
    wait_until("the stalled reader is cut off", || failed.load(Ordering::Relaxed) == 1);
    drop(stopped);
    end();
}

#[test]
fn process_that_ends_does_not_wait_for_a_page() {
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
    // A page may take ten minutes.
    let ending = std::thread::spawn(end);
    wait_until("the process has ended", || ending.is_finished());
    ending.join().unwrap();
    assert!(!is_whole(&all_of(stream)));
}

#[test]
fn slow_forms_keep_no_other_request_from_a_site() {
    on_start("first", |scope| {
        scope.site("/site/", |_| SiteResponse { status: 200, ..SiteResponse::default() });
        Ok(scope.idle()?)
    });
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let head = "POST /site/form HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in 0..5 {
        let mut response = String::new();
        ask(address, "/").read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    // Their time ends by itself.
    for mut stream in slow {
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    }
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}
