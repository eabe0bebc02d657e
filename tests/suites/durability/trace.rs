//! What `strace -f -yy` writes, as beginnings and ends of calls in their order.

use std::collections::HashMap;
use std::path::Path;

/// A call that begins, or one that has returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// When, in seconds since the epoch, as strace writes it.
    at: String,
    name: String,
    /// What the first argument is: a path, or the two ends of a connection.
    target: String,
    moment: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// With what the call returns in the end, where that is known by now.
    Begun(Option<i64>),
    Done(i64),
}

/// Reads the file. A call that was not interrupted by another thread's is one line, and
/// becomes a beginning and an end; otherwise it is two lines.
pub(crate) fn read(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be in the making.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut events: Vec<Event> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for line in whole.lines() {
        // Threads' numbers are padded.
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((at, call)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        if call.starts_with("<... ") {
            let (Some(begun), Some(result)) = (open.remove(thread), result_of(call)) else {
                continue;
            };
            events[begun].moment = Moment::Begun(Some(result));
            let done = Event {
                at: at.into(),
                moment: Moment::Done(result),
                ..events[begun].clone()
            };
            events.push(done);
            continue;
        }
        let Some((name, arguments)) = call.split_once('(') else {
            continue;
        };
        let target = arguments
            .split_once('<')
            .map_or("", |(_, rest)| named(rest));
        let event = |moment| Event {
            at: at.into(),
            name: name.into(),
            target: target.into(),
            moment,
        };
        if call.ends_with("<unfinished ...>") {
            open.insert(thread, events.len());
            events.push(event(Moment::Begun(None)));
        } else if let Some(result) = result_of(call) {
            events.push(event(Moment::Begun(Some(result))));
            events.push(event(Moment::Done(result)));
        }
    }
    events
}

impl Event {
    /// A write to this file begins.
    pub(crate) fn is_write_to(&self, path: &str) -> bool {
        matches!(self.name.as_str(), "pwrite64" | "write" | "writev")
            && self.target == path
            && matches!(self.moment, Moment::Begun(_))
    }

    /// A sync of this file begins that will succeed.
    pub(crate) fn is_begun_sync_of(&self, path: &str) -> bool {
        self.is_sync_of(path) && self.moment == Moment::Begun(Some(0))
    }

    /// A sync of this file has succeeded.
    pub(crate) fn is_done_sync_of(&self, path: &str) -> bool {
        self.is_sync_of(path) && self.moment == Moment::Done(0)
    }

    /// A write of at least so many octets to the peer with this address begins.
    pub(crate) fn is_write_to_peer(&self, peer: &str, least: usize) -> bool {
        let least = i64::try_from(least).expect("a small number");
        matches!(
            self.name.as_str(),
            "write" | "writev" | "sendto" | "sendmsg"
        ) && self.target.ends_with(&format!("->{peer}]"))
            && matches!(self.moment, Moment::Begun(Some(octets)) if octets >= least)
    }

    /// A read of at least so many octets from the peer with this address has returned.
    pub(crate) fn is_read_from_peer(&self, peer: &str, least: usize) -> bool {
        let least = i64::try_from(least).expect("a small number");
        matches!(
            self.name.as_str(),
            "read" | "readv" | "recvfrom" | "recvmsg"
        ) && self.target.ends_with(&format!("->{peer}]"))
            && matches!(self.moment, Moment::Done(octets) if octets >= least)
    }

    fn is_sync_of(&self, path: &str) -> bool {
        matches!(self.name.as_str(), "fdatasync" | "fsync") && self.target == path
    }
}

/// What stands between the first `<` and its `>`; a connection has one inside: `->`.
fn named(rest: &str) -> &str {
    let end = rest
        .match_indices('>')
        .find(|(at, _)| !rest[..*at].ends_with('-'));
    end.map_or("", |(at, _)| &rest[..at])
}

fn result_of(call: &str) -> Option<i64> {
    let (_, result) = call.rsplit_once(" = ")?;
    result.split(' ').next()?.parse().ok()
}

#[test]
fn a_call_in_two_lines_is_in_its_place_twice() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "\
7  100.1 pwrite64(9</d/citadel.db-wal>, \"\"..., 24, 32) = 24
7  100.2 fdatasync(9</d/citadel.db-wal> <unfinished ...>
8  100.3 writev(12<TCP:[127.0.0.1:10:->127.0.0.1:20]>, [], 2) = 900
7  100.4 <... fdatasync resumed>) = 0
7  100.5 fdatasync(9</d/citadel.db-wal>) = -1 EIO (Input/output error)
8  100.6 sendto(12<TCP:[127.0.0.1:10->127.0.0.1:20]>, \"\"..., 1200, MSG_NOSIGNAL, NULL, 0) = 1200
9  100.7 recvfrom(12<TCP:[127.0.0.1:10->127.0.0.1:20]>, \"\"..., 4096, 0, NULL, NULL) = 1100
8  100.8 write(3<pi";
    std::fs::write(file.path(), text).unwrap();
    let events = read(file.path());
    let wal = "/d/citadel.db-wal";
    let places = |is: &dyn Fn(&Event) -> bool| -> Vec<usize> {
        (0..events.len()).filter(|&at| is(&events[at])).collect()
    };
    assert_eq!(places(&|event| event.is_write_to(wal)), [0]);
    assert_eq!(places(&|event| event.is_begun_sync_of(wal)), [2]);
    assert_eq!(places(&|event| event.is_done_sync_of(wal)), [5]);
    assert_eq!(
        places(&|event| event.is_write_to_peer("127.0.0.1:20", 800)),
        [3, 8]
    );
    assert_eq!(
        places(&|event| event.is_write_to_peer("127.0.0.1:20", 1000)),
        [8]
    );
    assert_eq!(
        places(&|event| event.is_read_from_peer("127.0.0.1:20", 800)),
        [11]
    );
}
