//! Secrets and the log: everything that processes and caches of tests print is looked through, as it comes, for every
//! secret that was ever sent or made in the same test program. A secret that is found fails this test and each that ends
//! after it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The fewest bytes of a secret: shorter ones stand in lines by chance.
const SHORTEST: usize = 12;
/// How many lines are looked at again when there is a new secret: a cache may log one before its test has heard of it.
const LAST_LINES: usize = 2_000;
/// How many bytes of a line are looked at.
const LONGEST_LINE: usize = 10_000;
/// How many bytes of each secret are looked for first.
const BEGINNING: usize = 8;
/// How many answers [`slot`] tells apart.
const SLOTS: usize = 1 << 16;

/// What is logged, looked through for secrets.
#[derive(Default)]
struct Watch {
    /// What kind each is of.
    kinds: HashMap<String, &'static str>,
    /// Where each may begin; most lines have none of these.
    beginnings: HashMap<[u8; BEGINNING], HashSet<String>>,
    /// Whether four bytes with this [`slot`] may begin a secret: asked of each byte that is logged, and nearly always no.
    may_begin: Vec<bool>,
    last_lines: VecDeque<String>,
    /// The last line with a secret of a kind.
    found: BTreeMap<&'static str, String>,
    lines: usize,
}

impl Watch {
    fn know(&mut self, kind: &'static str, secret: &str) {
        if secret.is_empty() {
            return;
        }
        assert!(secret.len() >= SHORTEST, "{kind} is too short to be looked for: let the test have a longer one");
        let (Some(beginning), Some(four)) = (secret.as_bytes().first_chunk(), secret.as_bytes().first_chunk()) else {
            return;
        };
        if self.kinds.insert(secret.to_owned(), kind).is_some() {
            return;
        }
        self.may_begin.resize(SLOTS, false);
        self.may_begin[slot(u32::from_be_bytes(*four))] = true;
        self.beginnings.entry(*beginning).or_default().insert(secret.to_owned());
        if let Some(line) = self.last_lines.iter().find(|line| line.contains(secret)) {
            self.found.insert(kind, line.clone());
        }
    }

    fn see(&mut self, line: &str) {
        self.lines += 1;
        // What is longer was sent to us like that.
        let line = &line[..line.floor_char_boundary(LONGEST_LINE)];
        let mut four = 0;
        for (at, byte) in line.bytes().enumerate() {
            four = (four << 8) | u32::from(byte);
            if at < 3 || self.may_begin.get(slot(four)) != Some(&true) {
                continue;
            }
            let rest = &line.as_bytes()[at - 3..];
            let Some(secrets) = rest.first_chunk().and_then(|beginning| self.beginnings.get(beginning)) else {
                continue;
            };
            for secret in secrets.iter().filter(|secret| rest.starts_with(secret.as_bytes())) {
                self.found.insert(self.kinds[secret], line.to_owned());
            }
        }
        if self.last_lines.len() == LAST_LINES {
            self.last_lines.pop_front();
        }
        self.last_lines.push_back(line.to_owned());
    }
}

/// Where [`Watch::may_begin`] has the answer for these four bytes.
fn slot(four: u32) -> usize {
    usize::from((four.wrapping_mul(0x9E37_79B1) >> 16) as u16)
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn watch<T>(look: impl FnOnce(&mut Watch) -> T) -> T {
    let mut watch: MutexGuard<'_, _> = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    look(watch.get_or_insert_default())
}

/// From now on no line may have this, which has a dozen bytes or none.
pub fn know(kind: &'static str, secret: &str) {
    watch(|watch| watch.know(kind, secret));
}

/// What may be a secret, and is looked for if it is long enough: a guess is whatever a test makes of it.
fn know_guess(kind: &'static str, secret: &str) {
    if secret.len() >= SHORTEST {
        know(kind, secret);
    }
}

/// A user name and a password: neither the password nor what Basic makes of both may be in a line.
pub fn know_login(kind: &'static str, user: &str, password: &str) {
    know(kind, password);
    know(kind, &BASE64_STANDARD.encode(format!("{user}:{password}")));
}

/// What `Authorization` has, decoded too.
pub fn know_authorization(kind: &'static str, headers: &HeaderMap) {
    for value in headers.get_all(AUTHORIZATION).iter().filter_map(|value| value.to_str().ok()) {
        let Some((_, credentials)) = value.split_once(' ') else { continue };
        know_guess(kind, credentials);
        let pair = BASE64_STANDARD.decode(credentials).ok().and_then(|pair| String::from_utf8(pair).ok());
        if let Some((_, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) {
            know_guess(kind, password);
        }
    }
}

/// The query of a URL, which may be signed.
pub fn know_query(kind: &'static str, url: &str) {
    if let Some((_, query)) = url.split_once('?') {
        know_guess(kind, query);
        // Whatever name it has: the signature and the token, of S3's presigned URLs.
        for (_, value) in query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(name, _)| is_secret(name)) {
            know_guess(kind, value);
        }
    }
}

fn is_secret(parameter: &str) -> bool {
    let name = parameter.to_ascii_lowercase();
    ["signature", "token", "sig", "verify", "credential"].iter().any(|secret| name.contains(secret))
}

/// Another line of a log.
pub fn see(line: &str) {
    watch(|watch| watch.see(line));
}

/// Something whose log is watched. Dropping it fails the test, if that has not failed already, where any log has a secret.
pub struct Watched;

impl Drop for Watched {
    fn drop(&mut self) {
        let found = watch(|watch| watch.found.clone());
        assert!(found.is_empty() || std::thread::panicking(), "in a log there is {found:#?}");
    }
}

/// How many lines were seen so far.
pub fn lines_seen() -> usize {
    watch(|watch| watch.lines)
}

/// Has everything that is traced in this process be seen, from DEBUG on: what `STOPOVER_LOG=debug` shows to an operator.
pub fn watch_this_process() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The endpoints of AWS are played in this process too: what they log is not ours.
        let filter = EnvFilter::new("debug,s3s=off,dynoxide=off");
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Lines).init();
    });
}

/// Where events go: each is written at once, with its end of line.
struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        String::from_utf8_lossy(bytes).lines().for_each(see);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_secret_is_found_with_its_kind_and_its_line() {
        let mut watch = Watch::default();
        watch.know("a robot's secret", "stopover_0123456789");
        watch.see("INFO login: robot:ci");
        watch.see("INFO login: stopover_012345678 is almost one");
        assert!(watch.found.is_empty());
        watch.see("INFO login: ci:stopover_0123456789!");
        assert_eq!(watch.found["a robot's secret"], "INFO login: ci:stopover_0123456789!");
        // It was logged before anybody said that it is secret.
        watch.know("a token", "eyJhbGciOiJIUzI1NiJ9");
        watch.see("no secret");
        watch.see("GET /?token=abcdefghijklmnop");
        watch.know("a query", "token=abcdefghijklmnop");
        assert_eq!(watch.found["a query"], "GET /?token=abcdefghijklmnop");
        watch.know("nothing", "");
        assert_eq!((watch.found.len(), watch.lines), (2, 5));
    }

    #[test]
    #[should_panic(expected = "too short to be looked for")]
    fn a_secret_that_is_too_short_to_be_looked_for_is_refused() {
        Watch::default().know("a password", "secret");
    }

    #[test]
    fn what_a_login_and_a_signed_url_have_is_secret() {
        let text = format!("Basic {}", BASE64_STANDARD.encode("me:the password"));
        know_authorization("planted", &HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]));
        know_query("planted", "https://a.test/?X-Amz-Signature=0123456789abcdef&x=1");
        let known = watch(|watch| watch.kinds.clone());
        for secret in
            ["the password", "bWU6dGhlIHBhc3N3b3Jk", "0123456789abcdef", "X-Amz-Signature=0123456789abcdef&x=1"]
        {
            assert_eq!(known.get(secret), Some(&"planted"), "{secret}");
        }
    }
}
