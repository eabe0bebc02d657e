//! What a certificate says, read by a parser that shares no code with ours.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A parsed certificate.
#[derive(Debug)]
pub struct Certificate<'a>(X509Certificate<'a>);

/// What a certificate grants: all of it, so that nothing is overlooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// The subject, empty for an SVID.
    pub subject: String,
    /// Every subject alternative name, with its kind: `URI:…`, `DNS:…`.
    pub names: Vec<String>,
    /// CA flag and path length.
    pub basic_constraints: (bool, Option<u32>),
    /// Key usage, as the parser prints it.
    pub key_usage: String,
    /// Extended key usages.
    pub extended: Vec<String>,
    /// Every extension by OID, and whether it is critical; sorted.
    pub extensions: Vec<(String, bool)>,
}

impl Grants {
    /// What an X.509-SVID of a workload grants, and no more.
    pub fn of_leaf(spiffe_id: &str) -> Self {
        Self {
            subject: String::new(),
            names: vec![format!("URI:{spiffe_id}")],
            basic_constraints: (false, None),
            key_usage: "Digital Signature".into(),
            extended: vec!["serverAuth".into(), "clientAuth".into()],
            extensions: [
                ("2.5.29.14", false),
                ("2.5.29.15", true),
                // Critical, since the subject is empty (RFC 5280, 4.2.1.6).
                ("2.5.29.17", true),
                ("2.5.29.19", true),
                ("2.5.29.35", false),
                ("2.5.29.37", false),
            ]
            .map(|(oid, critical)| (oid.into(), critical))
            .into(),
        }
    }
}

impl<'a> Certificate<'a> {
    /// Parses one, which must be all of `der`.
    pub fn of_der(der: &'a [u8]) -> Self {
        let (rest, parsed) = X509Certificate::from_der(der).expect("a certificate");
        assert!(rest.is_empty(), "bytes follow the certificate");
        Self(parsed)
    }

    /// The serial in hex, as in its DER.
    pub fn serial(&self) -> String {
        hex::encode(self.0.raw_serial())
    }

    /// Seconds since the epoch.
    pub fn not_before(&self) -> i64 {
        self.0.validity().not_before.timestamp()
    }

    /// Seconds since the epoch.
    pub fn not_after(&self) -> i64 {
        self.0.validity().not_after.timestamp()
    }

    /// The whole `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> &[u8] {
        self.0.public_key().raw
    }

    /// The URIs among its names.
    pub fn uris(&self) -> Vec<String> {
        let names = self.names().into_iter();
        names
            .filter_map(|name| name.strip_prefix("URI:").map(str::to_owned))
            .collect()
    }

    /// All that it grants.
    pub fn grants(&self) -> Grants {
        let mut grants = Grants {
            subject: self.0.subject().to_string(),
            names: self.names(),
            basic_constraints: (false, None),
            key_usage: String::new(),
            extended: Vec::new(),
            extensions: Vec::new(),
        };
        for extension in self.0.extensions() {
            grants
                .extensions
                .push((extension.oid.to_id_string(), extension.critical));
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(value) => {
                    grants.basic_constraints = (value.ca, value.path_len_constraint);
                }
                ParsedExtension::KeyUsage(value) => grants.key_usage = value.to_string(),
                ParsedExtension::ExtendedKeyUsage(value) => {
                    let flags = [
                        ("any", value.any),
                        ("serverAuth", value.server_auth),
                        ("clientAuth", value.client_auth),
                        ("codeSigning", value.code_signing),
                        ("emailProtection", value.email_protection),
                        ("timeStamping", value.time_stamping),
                        ("OCSPSigning", value.ocsp_signing),
                    ];
                    let set = flags.iter().filter(|(_, set)| *set);
                    grants.extended = set.map(|(name, _)| (*name).to_owned()).collect();
                    grants.extended.extend(
                        value
                            .other
                            .iter()
                            .map(x509_parser::der_parser::Oid::to_id_string),
                    );
                }
                _ => {}
            }
        }
        grants.extensions.sort();
        grants
    }

    fn names(&self) -> Vec<String> {
        let extension = self
            .0
            .subject_alternative_name()
            .expect("one such extension at most");
        let names = extension.map(|extension| extension.value.general_names.as_slice());
        let spell = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => format!("URI:{uri}"),
            GeneralName::DNSName(name) => format!("DNS:{name}"),
            other => format!("{other:?}"),
        };
        names.unwrap_or_default().iter().map(spell).collect()
    }
}

/// One PEM block with a certificate.
pub fn to_pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<_> = body
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
