//! The `openssl` command.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::parts::part;

/// Runs it with `input` and returns its output. Panics if it fails.
pub fn run(args: &[&str], input: &[u8]) -> Vec<u8> {
    let (ok, output, errors) = attempt(args, input);
    assert!(ok, "openssl {args:?}: {errors}");
    output
}

/// The same for output that is text.
pub fn run_text(args: &[&str], input: &[u8]) -> String {
    String::from_utf8(run(args, input)).expect("text")
}

/// Runs it; whether it succeeded, its output, its complaints.
pub fn attempt(args: &[&str], input: &[u8]) -> (bool, Vec<u8>, String) {
    let mut child = Command::new(part("OPENSSL"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the openssl command");
    let mut stdin = child.stdin.take().expect("piped");
    // It may end before it has read all; its exit code tells.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("the openssl command");
    (
        output.status.success(),
        output.stdout,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// An RSA key, PKCS#8 PEM.
pub fn rsa_key(bits: u32) -> String {
    rsa_key_with(bits, &[])
}

/// An RSA key with more `rsa_keygen_…` options (`pubexp:3`, `primes:4`).
pub fn rsa_key_with(bits: u32, options: &[&str]) -> String {
    let options: Vec<_> = options
        .iter()
        .map(|option| format!("rsa_keygen_{option}"))
        .collect();
    let bits = format!("rsa_keygen_bits:{bits}");
    let mut args = vec!["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &bits];
    for option in &options {
        args.extend(["-pkeyopt", option]);
    }
    run_text(&args, b"")
}

/// A key on a named curve, PKCS#8 PEM.
pub fn ec_key(curve: &str) -> String {
    let curve = format!("ec_paramgen_curve:{curve}");
    run_text(
        &["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", &curve],
        b"",
    )
}

/// An Ed25519 key, PKCS#8 PEM.
pub fn ed25519_key() -> String {
    run_text(&["genpkey", "-algorithm", "ED25519"], b"")
}
