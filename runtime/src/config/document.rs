//! One YAML document, and the way from the parser's errors to ours.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Options};

use super::{
    Checker, ConfigError, Origin, Problem,
    places::{Places, place},
};

/// The largest file that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// A configuration file's text, with the places of its keys.
#[derive(Debug)]
pub struct Document {
    /// `None`: there is no file, every value is a default or an override.
    file: Option<String>,
    text: String,
    places: Places,
    overridden: BTreeMap<String, &'static str>,
}

impl Document {
    /// Reads a file of at most 4 MiB.
    ///
    /// # Errors
    /// It can't be read, is larger, or is no UTF-8.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            file: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LARGEST + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > LARGEST {
            let error = io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 4 MiB");
            return Err(failed(error));
        }
        Ok(Self::from_text(path.display().to_string(), text))
    }

    /// From a text; `name` stands in errors where a file's name would.
    pub fn from_text(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let places = Places::of(&text, options());
        Self {
            file: Some(name.into()),
            text,
            places,
            overridden: BTreeMap::new(),
        }
    }

    /// Without a file: everything is a default or an override.
    pub fn empty() -> Self {
        Self {
            file: None,
            text: String::new(),
            places: Places::default(),
            overridden: BTreeMap::new(),
        }
    }

    /// The document as a `T`. An empty one is a mapping without keys.
    ///
    /// # Errors
    /// It is no YAML, has a key that `T` does not know, lacks one that `T` needs, or holds a
    /// value of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        serde_saphyr::from_str_with_options(&self.text, options())
            .map_err(|error| ConfigError::Invalid(vec![self.explain(&error)]))
    }

    /// Remembers that the value at `key` no longer comes from the file but from `by`, such as
    /// `--listen or CITADEL_LISTEN`.
    pub fn overridden(&mut self, key: impl Into<String>, by: &'static str) {
        self.overridden.insert(key.into(), by);
    }

    /// Begins the judgement of the parsed values.
    pub fn checker(&self) -> Checker<'_> {
        Checker::new(self)
    }

    pub(super) fn problem(&self, key: &str, problem: impl Display, fix: impl Display) -> Problem {
        let origin = match (self.overridden.get(key), &self.file) {
            (Some(by), _) => Origin::Override(by),
            (None, Some(name)) => Origin::File {
                name: name.clone(),
                place: self.places.find(key),
            },
            (None, None) => Origin::Default,
        };
        Problem {
            origin,
            key: key.to_owned(),
            problem: problem.to_string(),
            fix: fix.to_string(),
        }
    }

    fn explain(&self, error: &Error) -> Problem {
        let place = error.location().map(|location| place(&location));
        let at = |path: Option<&str>| path.unwrap_or_default().to_owned();
        let value = at(place.and_then(|place| self.places.value_at(place)));
        let (key, problem, fix) = match error {
            Error::SerdeUnknownField {
                field, expected, ..
            } => {
                let key = place.and_then(|place| self.places.key_at(place));
                let key = key.map_or_else(|| field.clone(), str::to_owned);
                (
                    key,
                    "is not a known key".to_owned(),
                    instead(field, expected),
                )
            }
            Error::SerdeMissingField { field, .. } => {
                let around = place
                    .map(|place| self.places.mapping_at(place))
                    .unwrap_or_default();
                let dot = if around.is_empty() { "" } else { "." };
                (
                    format!("{around}{dot}{field}"),
                    "is missing".to_owned(),
                    "set it".to_owned(),
                )
            }
            Error::SerdeUnknownVariant {
                variant, expected, ..
            } => (
                value,
                format!("`{variant}` is not a known value"),
                instead(variant, expected),
            ),
            Error::DuplicateMappingKey { key, .. } => {
                let path = place
                    .and_then(|place| self.places.key_at(place))
                    .map(str::to_owned);
                let path = path.or_else(|| key.clone()).unwrap_or_default();
                (
                    path,
                    "is there twice".to_owned(),
                    "keep one of the two".to_owned(),
                )
            }
            Error::InvalidScalar { ty, .. } => (
                value,
                format!("is not {}", of_type(ty)),
                "correct the value".to_owned(),
            ),
            Error::InvalidBooleanStrict { .. } => (
                value,
                "is not a boolean".to_owned(),
                "write true or false".to_owned(),
            ),
            Error::NullIntoString { .. } => (
                value,
                "is empty".to_owned(),
                "give it a value, or leave the key out".to_owned(),
            ),
            Error::Unexpected { expected, .. } => (
                value,
                format!("has another shape: {}", shape(expected)),
                "correct it".to_owned(),
            ),
            Error::MultipleDocuments { .. } => (
                String::new(),
                "a second document begins here (`---`)".to_owned(),
                "keep one document in the file".to_owned(),
            ),
            // A value's own parser, such as a duration's: its words include the fix.
            Error::Message { msg, .. } => (value, msg.clone(), "correct the value".to_owned()),
            other => (value, words(other), "correct the YAML".to_owned()),
        };
        let mut found = self.problem(&key, problem, fix);
        if let (Origin::File { place: at, .. }, Some(place)) = (&mut found.origin, place) {
            *at = Some(place);
        }
        found
    }
}

fn options() -> Options {
    serde_saphyr::options! { with_snippet: false }
}

/// The parser's own words without the place, which we write before the key.
fn words(error: &Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn of_type(ty: &str) -> String {
    match ty {
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" | "u64" | "usize" => "a whole number of 0 or more in range".to_owned(),
        "i8" | "i16" | "i32" | "i64" => "a whole number in range".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "boolean" | "bool" => "true or false".to_owned(),
        other => format!("a valid {other}"),
    }
}

fn shape(expected: &str) -> String {
    match expected {
        "string scalar" => "a single text is expected here".to_owned(),
        "sequence start" => "a list is expected here (`- item` lines or [item, item])".to_owned(),
        "mapping start" => "keys with values are expected here (`key: value`)".to_owned(),
        other => format!("{other} is expected here"),
    }
}

/// Names the likeliest of the known words, or all.
fn instead(word: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min();
    match nearest {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("write one of {}", known.join(", ")),
    }
}

/// How many letters must be put in, taken out or changed to get from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // The file is at most 4 MiB and known words are short, so this is bounded.
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
