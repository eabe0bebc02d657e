//! Requests that ask for more than their key, and requests that no CA should
//! take.

use super::csr::{self, Builder, Csr};
use super::der::{self, tag};
use super::openssl;

const BASIC_CONSTRAINTS: &[u32] = &[2, 5, 29, 19];
const KEY_USAGE: &[u32] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u32] = &[2, 5, 29, 17];
const EXTENDED_KEY_USAGE: &[u32] = &[2, 5, 29, 37];
const UNKNOWN: &[u32] = &[1, 3, 6, 1, 4, 1, 55555, 1];

/// A request with the name of what is wrong with it.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// What is wrong.
    pub name: &'static str,
    /// The request, as it goes into an RPC's PEM field.
    pub pem: String,
    /// The same in DER, where it is one request.
    pub der: Option<Vec<u8>>,
}

impl Hostile {
    fn new(name: &'static str, csr: &Csr) -> Self {
        Self {
            name,
            pem: csr.pem(),
            der: Some(csr.der.clone()),
        }
    }

    fn of_der(name: &'static str, der: Vec<u8>) -> Self {
        Self {
            name,
            pem: csr::pem(&der),
            der: Some(der),
        }
    }

    fn of_pem(name: &'static str, pem: String) -> Self {
        Self {
            name,
            pem,
            der: None,
        }
    }
}

/// Well-formed requests, with a proven key, that want things that are not
/// theirs to want. A certificate for one holds nothing of what it wants.
pub fn greedy() -> Vec<Hostile> {
    let with = |extension: Vec<u8>| Builder::default().extension(extension).build();
    let uri = |uri: &str| der::element(tag::URI, uri.as_bytes());
    let dns = |name: &str| der::element(tag::DNS_NAME, name.as_bytes());
    let ip = |address: &[u8]| der::element(tag::IP_ADDRESS, address);
    let email = |address: &str| der::element(tag::EMAIL, address.as_bytes());
    let names = |names: &[Vec<u8>]| der::extension(SUBJECT_ALT_NAME, false, &der::sequence(names));
    let twice = Builder::default()
        .extension(ca_true())
        .extension(ca_true())
        .build();
    vec![
        Hostile::new("CA:true", &with(ca_true())),
        Hostile::new("keyCertSign", &with(key_cert_sign())),
        Hostile::new(
            "another's SPIFFE ID",
            &with(names(&[uri(
                "spiffe://example.org/ns/kube-system/sa/admin",
            )])),
        ),
        Hostile::new(
            "the CA's SPIFFE ID",
            &with(names(&[uri("spiffe://example.org/citadel/ca")])),
        ),
        Hostile::new(
            "a foreign trust domain",
            &with(names(&[uri("spiffe://elsewhere.test/ns/shop/sa/web")])),
        ),
        Hostile::new(
            "two SPIFFE IDs",
            &with(names(&[
                uri("spiffe://example.org/ns/shop/sa/web"),
                uri("spiffe://example.org/ns/shop/sa/db"),
            ])),
        ),
        Hostile::new("a DNS name", &with(names(&[dns("db.shop.svc")]))),
        Hostile::new("a wildcard DNS name", &with(names(&[dns("*.example.org")]))),
        Hostile::new("an IPv4 address", &with(names(&[ip(&[10, 96, 0, 1])]))),
        Hostile::new("an IPv6 address", &with(names(&[ip(&[0xfd; 16])]))),
        Hostile::new(
            "an email address",
            &with(names(&[email("root@example.org")])),
        ),
        Hostile::new(
            "a name of every kind",
            &with(names(&[
                uri("spiffe://example.org/ns/kube-system/sa/admin"),
                dns("kubernetes.default.svc"),
                ip(&[127, 0, 0, 1]),
                email("admin@example.org"),
            ])),
        ),
        Hostile::new(
            "a subject",
            &Builder::default().common_name("admin").build(),
        ),
        Hostile::new("OCSP signing", &with(ocsp_signing())),
        Hostile::new("an extension twice", &twice),
        Hostile::new(
            "an unknown critical extension",
            &with(der::extension(UNKNOWN, true, &[5, 0])),
        ),
    ]
}

/// Requests that get nothing at all. RSA keys of odd sizes take seconds.
pub fn unacceptable() -> Vec<Hostile> {
    let good = csr::plain();
    let mut trailing = good.der.clone();
    trailing.extend([0; 4]);
    let mut flipped = good.der.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    let mut cut = good.der.clone();
    cut.truncate(good.der.len() - 3);
    vec![
        Hostile::of_der("trailing bytes", trailing),
        Hostile::of_der("a broken signature", flipped),
        Hostile::of_der("cut short", cut),
        Hostile::of_der("nothing", Vec::new()),
        Hostile::new(
            "another key's proof",
            &Builder::default().proof_by_another().build(),
        ),
        Hostile::new("P-521", &csr::for_key(&openssl::ec_key("P-521"))),
        Hostile::new("secp256k1", &csr::for_key(&openssl::ec_key("secp256k1"))),
        Hostile::new("Ed25519", &csr::for_key(&openssl::ed25519_key())),
        Hostile::new("RSA-1024", &csr::for_key(&openssl::rsa_key(1024))),
        // Five primes: found in a second, where two take half a minute.
        Hostile::new(
            "RSA-8192",
            &csr::for_key(&openssl::rsa_key_with(8192, &["primes:5"])),
        ),
        Hostile::new(
            "RSA with e=3",
            &csr::for_key(&openssl::rsa_key_with(2048, &["pubexp:3"])),
        ),
        Hostile::new("too large", &oversized(20 * 1024)),
        Hostile::of_pem(
            "two PEM blocks",
            format!("{}{}", good.pem(), csr::plain().pem()),
        ),
        Hostile::of_pem(
            "a certificate's label",
            good.pem().replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        ),
        Hostile::of_pem("no PEM", "hello".into()),
    ]
}

/// A well-formed request of at least this many bytes.
pub fn oversized(bytes: usize) -> Csr {
    Builder::default()
        .extension(der::extension(UNKNOWN, false, &vec![0x5a; bytes]))
        .build()
}

fn ca_true() -> Vec<u8> {
    let yes = der::element(tag::BOOLEAN, &[0xff]);
    der::extension(BASIC_CONSTRAINTS, true, &der::sequence(&[yes]))
}

fn key_cert_sign() -> Vec<u8> {
    // Bits 5 and 6, keyCertSign and cRLSign; one unused bit.
    der::extension(
        KEY_USAGE,
        true,
        &der::element(tag::BIT_STRING, &[1, 0b0000_0110]),
    )
}

fn ocsp_signing() -> Vec<u8> {
    let purpose = der::oid(&[1, 3, 6, 1, 5, 5, 7, 3, 9]);
    der::extension(EXTENDED_KEY_USAGE, false, &der::sequence(&[purpose]))
}
