//! A role's site on the admin port: small pages for a browser, whose address, headers and body the
//! role reads itself.
//!
//! A page in `pages.rs` is a long response that anyone who reaches the port may read. A site is a
//! set of short responses with headers of their own (cookies, a security policy). Each is made in a
//! thread of its own, because it may wait for another server; at most [`MAX_REQUESTS`] at a time.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use crate::{PageRequest, health::lock};

/// How many responses are made at a time.
const MAX_REQUESTS: usize = 16;

/// The time for the body of a request.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// The largest body of a request, bytes.
const MAX_BODY_BYTES: usize = 4 << 10;

/// A request to a site.
#[derive(Clone, Debug, Default)]
pub struct SiteRequest {
    /// The path, as sent.
    pub path: String,
    /// The decoded parameters: of the body of a form, else of the address.
    pub parameters: PageRequest,
    /// The method is POST; otherwise it is GET.
    pub is_post: bool,
    /// The header `Host`.
    pub host: Option<String>,
    /// The header `Cookie`; several are joined.
    pub cookie: Option<String>,
    /// The header `Origin`, which browsers send with a form.
    pub origin: Option<String>,
}

/// A response of a site.
#[derive(Clone, Debug, Default)]
pub struct SiteResponse {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

type Answer = dyn Fn(SiteRequest) -> SiteResponse + Send + Sync;

/// The sites of all roles.
#[derive(Clone, Default)]
pub(crate) struct Sites {
    sites: Arc<Mutex<Vec<Site>>>,
}

#[derive(Clone)]
pub(crate) struct Site {
    prefix: &'static str,
    permits: Arc<Semaphore>,
    answer: Arc<Answer>,
}

impl Sites {
    /// Adds a site at `/` and at every path below `prefix`.
    pub(crate) fn add(&self, prefix: &'static str, answer: Arc<Answer>) {
        lock(&self.sites).push(Site { prefix, permits: Arc::new(Semaphore::new(MAX_REQUESTS)), answer });
    }

    /// The site that has this path.
    pub(crate) fn get(&self, path: &str) -> Option<Site> {
        lock(&self.sites).iter().find(|site| path == "/" || path.starts_with(site.prefix)).cloned()
    }
}

impl fmt::Debug for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.sites).iter().map(|site| site.prefix)).finish()
    }
}

impl Site {
    pub(crate) async fn respond(self, request: Request) -> Response {
        let request = match timeout(READ_LIMIT, read(request)).await {
            Ok(Ok(request)) => request,
            Ok(Err(response)) => return response,
            Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the form has not arrived within 2 s\n").into_response(),
        };
        // After the body, so that slow clients do not keep others away.
        let Ok(permit) = self.permits.try_acquire_owned() else {
            return (StatusCode::SERVICE_UNAVAILABLE, "too many concurrent requests\n").into_response();
        };
        let (sender, made) = oneshot::channel();
        let answer = self.answer;
        let spawned = thread::Builder::new().name("site".to_owned()).spawn(move || {
            // A panic has been logged; without a response the browser gets an error.
            if let Ok(response) = catch_unwind(AssertUnwindSafe(|| answer(request))) {
                // Fails only if the browser has disconnected.
                let _ = sender.send(response);
            }
            drop(permit);
        });
        match (spawned, made.await) {
            (Ok(_), Ok(response)) => response.into_response(),
            (Ok(_), Err(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "this page failed\n").into_response(),
            (Err(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "cannot spawn a thread\n").into_response(),
        }
    }
}

async fn read(request: Request) -> Result<SiteRequest, Response> {
    let is_post = match *request.method() {
        Method::GET => false,
        Method::POST => true,
        _ => {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed, use GET or POST\n").into_response());
        }
    };
    let text = |name: HeaderName| {
        let values = request.headers().get_all(name);
        let values: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
        (!values.is_empty()).then(|| values.join("; "))
    };
    let [host, cookie, origin] = [header::HOST, header::COOKIE, header::ORIGIN].map(text);
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let query = match is_post {
        false => query,
        true => {
            let too_large = |_| (StatusCode::PAYLOAD_TOO_LARGE, "the form is too large\n").into_response();
            let body = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(too_large)?;
            String::from_utf8_lossy(&body).into_owned()
        }
    };
    let parameters = PageRequest::parse(&query)
        .ok_or_else(|| (StatusCode::BAD_REQUEST, "cannot decode the parameters\n").into_response())?;
    Ok(SiteRequest { path, parameters, is_post, host, cookie, origin })
}

impl SiteResponse {
    fn into_response(self) -> Response {
        let SiteResponse { status, headers, body } = self;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().append(HeaderName::from_static(name), value);
            }
        }
        response
    }
}
