//! Notes, checkpoints and receipts: what was signed, by whom, and nothing else.

use citadel_ledger::{
    Checkpoint, CheckpointError, KeyError, LogKey, Note, NoteError, Receipt, ReceiptError,
    VerifierKey, leaf_hash, node_hash,
};

const ORIGIN: &str = "citadel/example.org";

fn key() -> LogKey {
    LogKey::generate(ORIGIN).unwrap()
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        origin: ORIGIN.into(),
        size: 2,
        root: node_hash(leaf_hash(b"a"), leaf_hash(b"b")),
    }
}

fn receipt(key: &LogKey) -> Receipt {
    Receipt {
        entry: b"a".to_vec(),
        index: 0,
        proof: vec![leaf_hash(b"b")],
        checkpoint: checkpoint().sign(&[key]).unwrap(),
    }
}

#[test]
fn a_key_pair_written_by_gos_note_package_is_read() {
    // From the documentation of golang.org/x/mod/sumdb/note.
    let known = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let key: VerifierKey = known.parse().unwrap();
    assert_eq!(key.to_string(), known);
    let note = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n\
                \n\
                \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    let text = Note::parse(note.as_bytes()).unwrap();
    assert!(
        text.verify(std::slice::from_ref(&key))
            .unwrap()
            .ends_with("problem is.\n")
    );
    assert_eq!(text.encode(), note);
}

#[test]
fn a_checkpoint_is_the_log_s_own() {
    let (key, other) = (key(), LogKey::generate("other").unwrap());
    let note = checkpoint().sign(&[&key]).unwrap();
    let open = |note: &str, key: &LogKey| {
        Checkpoint::open(note.as_bytes(), std::slice::from_ref(key.verifier()))
    };
    assert_eq!(open(&note, &key), Ok(checkpoint()));
    assert!(matches!(
        open(&note, &other),
        Err(CheckpointError::Note(NoteError::NotSigned(_)))
    ));
    // Another key of the same name has another ID.
    let namesake = LogKey::generate(ORIGIN).unwrap();
    assert!(open(&note, &namesake).is_err());
    // Signed well, but for a log of another name.
    let foreign = Checkpoint {
        origin: "other".into(),
        ..checkpoint()
    };
    let note = foreign.sign(&[&key]).unwrap();
    assert!(matches!(
        open(&note, &key),
        Err(CheckpointError::Origin { .. })
    ));
}

#[test]
fn a_changed_checkpoint_does_not_verify() {
    let key = key();
    let note = checkpoint().sign(&[&key]).unwrap();
    let keys = std::slice::from_ref(key.verifier());
    for at in 0..note.len() {
        let mut bytes = note.clone().into_bytes();
        bytes[at] ^= 1;
        if let Ok(opened) = Checkpoint::open(&bytes, keys) {
            panic!("byte {at} changed to {opened:?}");
        }
    }
}

#[test]
fn several_keys_sign_one_checkpoint() {
    let (log, witness) = (key(), LogKey::generate("witness").unwrap());
    let note = checkpoint().sign(&[&log, &witness]).unwrap();
    assert_eq!(note.matches('\u{2014}').count(), 2);
    let keys = [log.verifier().clone(), witness.verifier().clone()];
    assert_eq!(Checkpoint::open(note.as_bytes(), &keys), Ok(checkpoint()));
    assert_eq!(
        Checkpoint::open(note.as_bytes(), &keys[..1]),
        Ok(checkpoint())
    );
    // A known key's broken signature spoils the note, whoever else has signed.
    let broken = note.replacen(&note[note.len() - 20..note.len() - 16], "AAAA", 1);
    assert!(Checkpoint::open(broken.as_bytes(), &keys).is_err());
}

#[test]
fn malformed_checkpoints_are_refused() {
    let root = checkpoint().root;
    for bad in [
        String::new(),
        format!("\n1\n{root}\n"),
        format!("{ORIGIN}\n01\n{root}\n"),
        format!("{ORIGIN}\n-1\n{root}\n"),
        format!("{ORIGIN}\n18446744073709551615\n{root}\n"),
        format!("{ORIGIN}\n1\n{}\n", &root.to_string()[1..]),
        format!("{ORIGIN}\n1\n{root}"),
        format!("{ORIGIN}\n1\n{root}\n\nmore\n"),
    ] {
        assert!(bad.parse::<Checkpoint>().is_err(), "{bad:?}");
    }
    let extended = format!("{ORIGIN}\n2\n{root}\nan extension\n");
    assert_eq!(extended.parse(), Ok(checkpoint()));
    // An origin that would end its line early can't be signed.
    let forged = Checkpoint {
        origin: "a\n9".into(),
        ..checkpoint()
    };
    assert!(forged.sign(&[&key()]).is_err());
}

#[test]
fn keys_are_kept_as_pem_and_shown_to_nobody() {
    let key = key();
    let pem = key.to_pem();
    let again = LogKey::from_pem(ORIGIN, pem.as_bytes()).unwrap();
    assert_eq!(again.verifier(), key.verifier());
    let shown = format!("{key:?}");
    assert!(
        shown.contains("redacted") && !shown.contains("PRIVATE"),
        "{shown}"
    );
    assert!(matches!(
        LogKey::from_pem(ORIGIN, b"hello"),
        Err(KeyError::Pem)
    ));
    for name in ["", "two words", "a+b", "new\nline"] {
        assert!(
            matches!(LogKey::generate(name), Err(KeyError::Name(_))),
            "{name:?}"
        );
    }
    let text = key.verifier().to_string();
    assert_eq!(text.parse(), Ok(key.verifier().clone()));
    let (name, rest) = text.split_once('+').unwrap();
    assert_eq!(
        format!("{name}x+{rest}").parse::<VerifierKey>(),
        Err(KeyError::Id)
    );
    assert_eq!("x".parse::<VerifierKey>(), Err(KeyError::Verifier));
}

#[test]
fn a_receipt_proves_its_own_entry_and_no_other() {
    let key = key();
    let keys = std::slice::from_ref(key.verifier());
    let good = receipt(&key);
    let text = good.encode();
    assert!(
        text.starts_with("c2sp.org/tlog-proof@v1\nextra YQ==\nindex 0\n"),
        "{text}"
    );
    let read = Receipt::parse(text.as_bytes()).unwrap();
    assert_eq!(read, good);
    assert_eq!(read.verify(keys), Ok(checkpoint()));
    for bad in [
        Receipt {
            entry: b"b".to_vec(),
            ..good.clone()
        },
        Receipt {
            index: 1,
            ..good.clone()
        },
        Receipt {
            index: 2,
            ..good.clone()
        },
        Receipt {
            proof: Vec::new(),
            ..good.clone()
        },
        Receipt {
            proof: vec![leaf_hash(b"b"); 2],
            ..good.clone()
        },
    ] {
        assert!(
            matches!(bad.verify(keys), Err(ReceiptError::Proof(_))),
            "{bad:?}"
        );
    }
    let other = LogKey::generate(ORIGIN).unwrap();
    let others = std::slice::from_ref(other.verifier());
    assert!(matches!(
        good.verify(others),
        Err(ReceiptError::Checkpoint(_))
    ));
}
