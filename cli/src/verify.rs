//! `citadel verify`: a certificate against a bundle, with the exact reason when it
//! is not a valid X509-SVID.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use citadel_identity::bundle::BundleSet;
use citadel_identity::verify::verify_svid;
use citadel_identity::{SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;

use crate::certificate::{self, Facts};
use crate::duration::parse_instant;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format, instant, remaining};
use crate::trust;

/// Far more than any chain or bundle needs.
const MAX_FILE: u64 = 16 << 20;

/// The bundle that `citadel fetch --write` puts beside a certificate.
const BUNDLE_BESIDE: &str = "svid_bundle.pem";

/// Verifies an X509-SVID: its chain, the SPIFFE rules and its validity.
///
/// Says exactly what is wrong, and then ends with exit code 1.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct VerifyArgs {
    /// The certificate, its intermediates after it: PEM or DER; `-` is standard input.
    #[arg(value_name = "CERT")]
    certificate: PathBuf,

    /// The trust bundle: PEM, DER or SPIFFE JSON. [default: `svid_bundle.pem` beside CERT]
    ///
    /// It holds the authorities of the certificate's own trust domain; repeat it as
    /// TRUST_DOMAIN=FILE for others. Bundles of different trust domains never mix.
    #[arg(long, value_name = "[TRUST_DOMAIN=]FILE")]
    bundle: Vec<String>,

    /// The SPIFFE ID that the certificate must have.
    #[arg(long, value_name = "SPIFFE_ID")]
    id: Option<SpiffeId>,

    /// Judge it at this instant: RFC 3339 or seconds since the epoch. [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_instant)]
    at: Option<OffsetDateTime>,
}

/// What was found, for people and programs.
#[derive(Serialize)]
struct Verdict {
    certificate: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
    #[serde(serialize_with = "certificate::rfc3339")]
    judged_at: OffsetDateTime,
    chain: Vec<Facts>,
}

impl VerifyArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        let chain = read_certificates(&self.certificate)?;
        let now = self.at.unwrap_or_else(OffsetDateTime::now_utc);
        let verdict = self.judge(&chain, now)?;
        match format {
            Format::Json => output::json(&verdict)?,
            Format::Text if verdict.valid => output::text(&verdict.text())?,
            Format::Text => {}
        }
        match verdict.problem {
            None => Ok(Outcome::Done),
            Some(problem) => Err(Failure::check(format!(
                "{}: not valid: {problem}",
                self.certificate.display()
            ))
            .into()),
        }
    }

    fn judge(&self, chain: &[Vec<u8>], now: OffsetDateTime) -> Result<Verdict, Failure> {
        let facts: Vec<Facts> = chain
            .iter()
            .enumerate()
            .map(|(place, der)| Facts::of(der, place + 1))
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::check(format!("{}: {error}", self.certificate.display())))?;
        let bundles = self.bundles(facts.first())?;
        let chain: Vec<CertificateDer<'_>> = chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let (spiffe_id, problem) = match verify_svid(&chain, &bundles, now) {
            Ok(verified) => {
                let found = verified.spiffe_id;
                let other = self.id.as_ref().filter(|wanted| **wanted != found);
                let problem = other.map(|wanted| format!("its SPIFFE ID is {found}, not {wanted}"));
                (Some(found), problem)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Verdict {
            certificate: self.certificate.display().to_string(),
            valid: problem.is_none(),
            problem,
            spiffe_id: spiffe_id.map(|id| id.to_string()),
            judged_at: now,
            chain: facts,
        })
    }

    fn bundles(&self, leaf: Option<&Facts>) -> Result<BundleSet, Failure> {
        let own = leaf.and_then(trust_domain_of);
        let beside = self.certificate.with_file_name(BUNDLE_BESIDE);
        let mut named: Vec<(Option<TrustDomain>, PathBuf)> = Vec::new();
        for text in &self.bundle {
            named.push(match text.split_once('=') {
                // A file whose name has a `=` in it is still a file.
                Some((trust_domain, file)) if !Path::new(text).exists() => {
                    let trust_domain = TrustDomain::new(trust_domain).map_err(|error| {
                        Failure::usage(format!("--bundle {text}: {trust_domain:?}: {error}"))
                            .next("Write --bundle example.org=FILE.")
                    })?;
                    (Some(trust_domain), PathBuf::from(file))
                }
                _ => (None, PathBuf::from(text)),
            });
        }
        if named.is_empty() {
            if !beside.exists() {
                return Err(
                    Failure::usage("there is no bundle to verify against").next(format!(
                        "Give --bundle FILE, or put a {BUNDLE_BESIDE} beside the certificate \
                     (`citadel fetch --write DIR` writes both)."
                    )),
                );
            }
            named.push((None, beside));
        }
        let mut set = BundleSet::default();
        for (trust_domain, path) in named {
            let content = read_file(&path)?;
            // Without a SPIFFE ID there is nothing to look up; verification says so.
            let Some(trust_domain) = trust_domain.or_else(|| own.clone()) else {
                continue;
            };
            let bundle = trust::parse(&trust_domain, &content).map_err(|error| {
                Failure::local(format!("{}: {error}", path.display()))
                    .next("--bundle takes certificates as PEM or DER, or a SPIFFE bundle as JSON.")
            })?;
            if set.insert(bundle).is_some() {
                return Err(Failure::usage(format!("{trust_domain} has two bundles"))
                    .next("Name each trust domain once; bundles are never merged."));
            }
        }
        Ok(set)
    }
}

impl Verdict {
    fn text(&self) -> String {
        let id = self.spiffe_id.as_deref().unwrap_or("-");
        let mut text = format!("{}: valid\n  SPIFFE ID  {id}\n", self.certificate);
        for (place, facts) in self.chain.iter().enumerate() {
            let name = if place == 0 { "serial" } else { "via" };
            let what = if place == 0 {
                &facts.serial
            } else {
                &facts.subject
            };
            let until = instant(facts.not_after);
            let left = remaining(facts.not_before, facts.not_after, self.judged_at);
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {name:<9}  {what}, until {until} ({left})");
        }
        text
    }
}

fn trust_domain_of(leaf: &Facts) -> Option<TrustDomain> {
    let uri = leaf.uris.first()?;
    Some(SpiffeId::new(uri).ok()?.trust_domain().clone())
}

fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let content = read_file(path)?;
    certificate::read(&content).map_err(|error| {
        Failure::check(format!("{}: {error}", path.display()))
            .next("CERT is an X.509 certificate as PEM or DER.")
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = || {
        let mut content = Vec::new();
        if path == Path::new("-") {
            std::io::stdin()
                .lock()
                .take(MAX_FILE + 1)
                .read_to_end(&mut content)?;
        } else {
            std::fs::File::open(path)?
                .take(MAX_FILE + 1)
                .read_to_end(&mut content)?;
        }
        Ok::<_, std::io::Error>(content)
    };
    let content = read()
        .map_err(|error| Failure::local(format!("can't read {}: {error}", path.display())))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Failure::local(format!(
            "{} is larger than 16 MiB",
            path.display()
        )));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::fs;

    use clap::Parser as _;
    use rcgen::{CertificateParams, KeyUsagePurpose, SanType};
    use tempfile::TempDir;
    use time::Duration;

    use super::*;
    use crate::exit::Exit;
    use crate::testing::TestCa;

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        verify: VerifyArgs,
    }

    const ID: &str = "spiffe://example.org/user/alice";

    struct Case {
        ca: TestCa,
        folder: TempDir,
    }

    impl Case {
        fn new() -> Self {
            Self {
                ca: TestCa::new(),
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn write(&self, name: &str, certificates: &[Vec<u8>]) -> String {
            let path = self.folder.path().join(name);
            fs::write(&path, certificate::to_pem(certificates)).unwrap();
            path.display().to_string()
        }

        /// The verdict on a leaf against this CA's root.
        fn judge(&self, leaf: &[Vec<u8>], more: &[&str]) -> Result<Verdict, Failure> {
            let (file, root) = (self.write("leaf.pem", leaf), self.root());
            judge(&[&[file.as_str(), "--bundle", &root], more].concat())
        }

        fn root(&self) -> String {
            self.write("root.pem", std::slice::from_ref(&self.ca.root))
        }

        fn problem(&self, alter: impl FnOnce(&mut CertificateParams)) -> String {
            self.judge(&self.ca.altered(ID, alter).chain, &[])
                .unwrap()
                .problem
                .unwrap_or_default()
        }
    }

    fn judge(words: &[&str]) -> Result<Verdict, Failure> {
        let args = Alone::try_parse_from([&["verify"], words].concat())
            .unwrap()
            .verify;
        let chain = read_certificates(&args.certificate)?;
        let now = args.at.unwrap_or_else(OffsetDateTime::now_utc);
        args.judge(&chain, now)
    }

    #[test]
    fn a_good_certificate_is_valid_and_its_facts_are_shown() {
        let case = Case::new();
        let verdict = case.judge(&case.ca.svid(ID).chain, &["--id", ID]).unwrap();
        assert_eq!(verdict.problem, None);
        assert!(verdict.text().contains(ID), "{}", verdict.text());
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["valid"], true);
        assert_eq!(json["spiffe_id"], ID);
    }

    #[test]
    fn spiffe_req_13_each_defect_is_named() {
        let case = Case::new();
        let now = OffsetDateTime::now_utc();
        let uri = |id: &str| SanType::URI(id.try_into().unwrap());
        let expired = case.problem(|it| it.not_after = now - Duration::minutes(1));
        assert!(expired.contains("expired"), "{expired}");
        let early = case.problem(|it| it.not_before = now + Duration::minutes(1));
        assert!(early.contains("not valid before"), "{early}");
        let two = case.problem(|it| it.subject_alt_names.push(uri("spiffe://example.org/b")));
        assert!(two.contains("no X509-SVID"), "{two}");
        let none = case.problem(|it| it.subject_alt_names.clear());
        assert!(none.contains("no X509-SVID"), "{none}");
        let root_path = case.problem(|it| it.subject_alt_names = vec![uri("spiffe://example.org")]);
        assert!(root_path.contains("no path"), "{root_path}");
        let signs = case.problem(|it| it.key_usages.push(KeyUsagePurpose::KeyCertSign));
        assert!(signs.contains("keyCertSign"), "{signs}");
    }

    #[test]
    fn another_authority_is_named() {
        let (case, other) = (Case::new(), TestCa::new());
        let problem = case
            .judge(&other.svid(ID).chain, &[])
            .unwrap()
            .problem
            .unwrap();
        assert!(
            problem.contains("signature") || problem.contains("authority"),
            "{problem}"
        );
    }

    #[test]
    fn another_id_than_wanted_is_named() {
        let case = Case::new();
        let wanted = ["--id", "spiffe://example.org/user/bob"];
        let problem = case
            .judge(&case.ca.svid(ID).chain, &wanted)
            .unwrap()
            .problem
            .unwrap();
        assert_eq!(
            problem,
            format!("its SPIFFE ID is {ID}, not spiffe://example.org/user/bob")
        );
    }

    #[test]
    fn the_instant_can_be_chosen() {
        let case = Case::new();
        let chain = case.ca.svid(ID).chain;
        let later = (OffsetDateTime::now_utc() + Duration::hours(2))
            .unix_timestamp()
            .to_string();
        let problem = case
            .judge(&chain, &["--at", &later])
            .unwrap()
            .problem
            .unwrap();
        assert!(problem.contains("expired"), "{problem}");
    }

    #[test]
    fn the_bundle_beside_the_certificate_is_the_default() {
        let case = Case::new();
        let file = case.write("svid.pem", &case.ca.svid(ID).chain);
        let refused = judge(&[&file]).err().unwrap();
        assert_eq!(refused.exit(), Exit::Usage);
        assert!(refused.to_string().contains("--bundle"), "{refused}");
        case.write(BUNDLE_BESIDE, std::slice::from_ref(&case.ca.root));
        assert_eq!(judge(&[&file]).unwrap().problem, None);
    }

    #[test]
    fn spiffe_req_36_bundles_of_trust_domains_do_not_mix() {
        let case = Case::new();
        let file = case.write("leaf.pem", &case.ca.svid(ID).chain);
        let foreign = format!("example.com={}", case.root());
        let problem = judge(&[&file, "--bundle", &foreign])
            .unwrap()
            .problem
            .unwrap();
        assert!(
            problem.contains("no trust bundle for the trust domain example.org"),
            "{problem}"
        );
        let own = format!("example.org={}", case.root());
        assert_eq!(
            judge(&[&file, "--bundle", &foreign, "--bundle", &own])
                .unwrap()
                .problem,
            None
        );
        let twice = judge(&[&file, "--bundle", &own, "--bundle", &own])
            .err()
            .unwrap();
        assert!(twice.to_string().contains("two bundles"), "{twice}");
    }

    #[test]
    fn files_that_are_not_there_or_not_certificates_are_told_apart() {
        let case = Case::new();
        let missing = judge(&["/nonexistent/x.pem", "--bundle", &case.root()])
            .err()
            .unwrap();
        assert_eq!(missing.exit(), Exit::Local);
        let path = case.folder.path().join("junk");
        fs::write(&path, "junk").unwrap();
        let junk = judge(&[&path.display().to_string(), "--bundle", &case.root()])
            .err()
            .unwrap();
        assert_eq!(junk.exit(), Exit::CheckFailed);
    }
}
