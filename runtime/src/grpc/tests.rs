#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use proptest::prelude::*;
use tonic::Code;

use super::*;

/// Longer messages are refused.
const MAX: usize = 200;

/// A message.
#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(string, repeated, tag = "1")]
    words: Vec<String>,
}

fn words(words: &[String]) -> Words {
    Words {
        words: words.to_vec(),
    }
}

fn framed(message: &Words) -> Vec<u8> {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &encoded].concat()
}

/// What a client sends, in these pieces.
fn sent(pieces: Vec<Vec<u8>>) -> Requests<Words> {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Status>(Frame::data(Bytes::from(piece))));
    let request = Request::new(Body::new(StreamBody::new(stream::iter(frames))));
    Call::new(request, MAX, Some(Arc::new(Unfinished::new(10 * MAX))))
        .unwrap()
        .requests
}

async fn all(mut requests: Requests<Words>) -> Result<Vec<Words>, Status> {
    let mut all = Vec::new();
    while let Some(message) = requests.next().await {
        all.push(message?);
    }
    assert_eq!(requests.holds(), 0, "nothing is kept");
    Ok(all)
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing is waited for")
}

proptest! {
    #[test]
    fn messages_are_the_same_however_they_are_cut(
        messages in prop::collection::vec(prop::collection::vec("[a-z]{0,40}", 0..4), 0..6),
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let messages: Vec<Words> = messages.iter().map(|it| words(it)).collect();
        let whole: Vec<u8> = messages.iter().flat_map(framed).collect();
        let mut places: Vec<usize> = cuts.drain(..).map(|it| it.index(whole.len() + 1)).collect();
        places.extend([0, whole.len()]);
        places.sort_unstable();
        let pieces = places.windows(2).map(|it| whole[it[0]..it[1]].to_vec()).collect();
        prop_assert_eq!(now(all(sent(pieces))).unwrap(), messages);
    }

    #[test]
    fn any_bytes_are_messages_or_an_error(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
    ) {
        let _ = now(all(sent(pieces)));
    }
}

#[test]
fn who_sends_message_by_message_leaves_nothing_behind() {
    let messages = [words(&["one".into()]), words(&["two".into()])];
    let pieces = messages.iter().map(framed).collect();
    assert_eq!(now(all(sent(pieces))).unwrap(), messages);
}

#[test]
fn what_is_no_message_ends_the_stream() {
    let long = framed(&words(&["x".repeat(MAX)]));
    let whole = framed(&words(&["one".into()]));
    let cut = whole[..whole.len() - 1].to_vec();
    let compressed = [&[1][..], &whole[1..]].concat();
    let nonsense = vec![0, 0, 0, 0, 2, 0xff, 0xff];
    for (pieces, code) in [
        (vec![long.clone()], Code::OutOfRange),
        // Before the rest of it has come.
        (vec![long[..5].to_vec()], Code::OutOfRange),
        (vec![cut], Code::Internal),
        (vec![compressed], Code::Internal),
        (vec![nonsense], Code::Internal),
    ] {
        let refused = now(all(sent(pieces))).unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let none = now(sent(Vec::new()).only()).unwrap_err();
    assert_eq!(none.code(), Code::Internal);
}

#[test]
fn what_a_caller_leaves_unfinished_is_bounded_over_all_of_its_calls() {
    let whole = framed(&words(&["x".repeat(90)]));
    let half = whole[..60].to_vec();
    let unfinished = Arc::new(Unfinished::new(100));
    let call = |pieces: Vec<Vec<u8>>| {
        let frames = pieces
            .into_iter()
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::from(piece))));
        // The client goes on some time.
        let body = StreamBody::new(stream::iter(frames).chain(stream::pending()));
        let request = Request::new(Body::new(body));
        Call::<Words>::new(request, MAX, Some(Arc::clone(&unfinished)))
            .unwrap()
            .requests
    };
    let mut first = call(vec![half.clone()]);
    assert!(first.next().now_or_never().is_none(), "half of one is held");
    let mut second = call(vec![half.clone()]);
    let refused = now(second.next()).unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(second);
    // Who sends whole messages has nothing unfinished.
    for _ in 0..5 {
        assert!(now(call(vec![whole.clone()]).next()).unwrap().is_ok());
    }
    drop(first);
    let mut third = call(vec![half, whole[60..].to_vec()]);
    assert!(now(third.next()).unwrap().is_ok());
    assert_eq!(third.holds(), 0);
    let mut fourth = call(vec![whole[..96].to_vec()]);
    assert!(fourth.next().now_or_never().is_none(), "all is there again");
}

#[test]
fn a_compressed_call_is_refused_and_told_what_is_taken() {
    let mut request = Request::new(Body::empty());
    let gzip = HeaderValue::from_static("gzip");
    request.headers_mut().insert("grpc-encoding", gzip);
    let refused = Call::<Words>::new(request, MAX, None).err().unwrap();
    assert_eq!(refused.code(), Code::Unimplemented);
    let taken = refused.metadata().get("grpc-accept-encoding").unwrap();
    assert_eq!(taken, "identity");
}

/// The frames of an answer: its data, and `grpc-status` with `grpc-message`.
fn answered(messages: Vec<Result<Words, Status>>) -> (Vec<Bytes>, String, Option<String>) {
    let response = answer(Ok(stream::iter(messages)));
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
    let mut body = response.into_body();
    let mut data = Vec::new();
    loop {
        let frame = now(body.frame()).expect("it ends with trailers").unwrap();
        match frame.into_data() {
            Ok(frame) => data.push(frame),
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap();
                let text = |name: &str| Some(trailers.get(name)?.to_str().unwrap().to_owned());
                assert!(now(body.frame()).is_none(), "nothing after them");
                return (data, text("grpc-status").unwrap(), text("grpc-message"));
            }
        }
    }
}

#[test]
fn an_answer_is_its_messages_and_how_it_ended() {
    let messages = [
        words(&["one".into()]),
        words(&["two".into(), "three".into()]),
    ];
    let (data, status, message) = answered(messages.iter().cloned().map(Ok).collect());
    assert_eq!(data, messages.iter().map(framed).collect::<Vec<_>>());
    assert_eq!((status.as_str(), message), ("0", None));

    let ended = Status::unavailable("the agent ends");
    let (data, status, message) = answered(vec![
        Ok(messages[0].clone()),
        Err(ended),
        Ok(messages[1].clone()),
    ]);
    assert_eq!(data, [framed(&messages[0])], "nothing after the end");
    assert_eq!(status, "14");
    assert_eq!(message.as_deref(), Some("the%20agent%20ends"));
}

#[test]
fn a_path_names_a_service_and_its_method_and_nothing_else() {
    for (path, names) in [
        ("/a.Service/Method", ("a.Service", "Method")),
        ("/a.Service/x/Method", ("a.Service/x", "Method")),
        ("//a.Service/Method", ("/a.Service", "Method")),
        ("/Method", ("", "Method")),
        ("/", ("", "")),
    ] {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = http::Uri::from_static(path);
        assert_eq!((service(&request), method(&request)), names, "{path}");
    }
}
