//! A configuration file in the making.

use serde_json::{Map, Value};

/// Keys and values of a YAML file. Values are JSON, which YAML contains.
#[derive(Clone, Debug)]
pub struct Settings(Value);

impl Settings {
    pub(super) fn new(defaults: Value) -> Self {
        assert!(defaults.is_object(), "a configuration is a map");
        Self(defaults)
    }

    /// Sets one key. A dot steps into a map: `limits.queue`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let mut place = &mut self.0;
        for step in key.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[step];
        }
        *place = value.into();
    }

    /// The value of a key, null when it is not set.
    pub fn value(&self, key: &str) -> &Value {
        key.split('.').fold(&self.0, |place, step| &place[step])
    }

    /// The file's text.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(&self.0).expect("JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dots_step_into_maps() {
        let mut settings = Settings::new(json!({ "ca": null, "listen": "a" }));
        settings.set("ca.dns_names", json!(["ca.example.org"]));
        settings.set("listen", "b");
        assert_eq!(
            settings.0,
            json!({ "ca": { "dns_names": ["ca.example.org"] }, "listen": "b" })
        );
        assert_eq!(settings.value("ca.nothing.here"), &Value::Null);
    }
}
