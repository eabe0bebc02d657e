//! Where each key of a YAML document stands.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

/// A line and a column, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// The key paths of a document (`clusters[1].name`), with their places, in document order.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    path: String,
    /// Where the key stands; for an item of a list, where its value does.
    key: Place,
    value: Place,
}

impl Places {
    /// Of a document; none if it is no YAML.
    pub(super) fn of(text: &str, options: serde_saphyr::Options) -> Self {
        let mut places = Self::default();
        if let Ok(root) = serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options) {
            let place = place(&root.referenced);
            places.add("", place, place, root.value);
        }
        places
    }

    /// Where the key stands, or the nearest key around it that does.
    pub(super) fn find(&self, path: &str) -> Option<Place> {
        let mut path = path;
        loop {
            if path.is_empty() {
                return None;
            }
            if let Some(entry) = self.0.iter().find(|entry| entry.path == path) {
                return Some(entry.key);
            }
            path = &path[..path.rfind(['.', '[']).unwrap_or(0)];
        }
    }

    /// The path of the key that stands at a place.
    pub(super) fn key_at(&self, place: Place) -> Option<&str> {
        self.0
            .iter()
            .rfind(|entry| entry.key == place)
            .map(|entry| entry.path.as_str())
    }

    /// The path of the outermost value that begins at a place; empty for the document itself.
    pub(super) fn value_at(&self, place: Place) -> Option<&str> {
        self.0
            .iter()
            .find(|entry| entry.value == place)
            .map(|entry| entry.path.as_str())
    }

    /// The path of the mapping that lacks a key, where the parser says so: at its beginning
    /// or at its first key.
    pub(super) fn mapping_at(&self, place: Place) -> &str {
        if let Some(entry) = self.0.iter().rfind(|entry| entry.value == place) {
            return &entry.path;
        }
        if let Some(entry) = self.0.iter().rfind(|entry| entry.key == place) {
            return &entry.path[..entry.path.rfind('.').unwrap_or(0)];
        }
        let before = self.0.iter().rfind(|entry| entry.value <= place);
        before.map_or("", |entry| entry.path.as_str())
    }

    fn add(&mut self, path: &str, key: Place, value: Place, node: Node) {
        self.0.push(Entry {
            path: path.to_owned(),
            key,
            value,
        });
        match node {
            Node::Scalar => {}
            Node::List(items) => {
                for (index, item) in items.into_iter().enumerate() {
                    let value = place(&item.referenced);
                    self.add(&format!("{path}[{index}]"), value, value, item.value);
                }
            }
            Node::Map(entries) => {
                for (key, item) in entries {
                    let dot = if path.is_empty() { "" } else { "." };
                    let path = format!("{path}{dot}{}", key.value);
                    self.add(
                        &path,
                        place(&key.referenced),
                        place(&item.referenced),
                        item.value,
                    );
                }
            }
        }
    }
}

pub(super) fn place(location: &Location) -> Place {
    Place {
        line: location.line(),
        column: location.column(),
    }
}

/// The shape of a document without its values.
enum Node {
    Scalar,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

// === impl Node ===

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;

        impl<'de> Visitor<'de> for Shape {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Node, D::Error> {
                Node::deserialize(inner)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }

        deserializer.deserialize_any(Shape)
    }
}
