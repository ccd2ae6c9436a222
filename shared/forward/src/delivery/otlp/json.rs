//! OTLP as JSON: the same messages with names in lowerCamelCase, and 64-bit numbers as text.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::record::{Attribute, Body, LogRecord, SERVICE_NAME};

/// A request under construction.
pub(super) struct RequestBuilder<'a> {
    out: &'a mut Vec<u8>,
    records: Vec<Value>,
}

impl<'a> RequestBuilder<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> RequestBuilder<'a> {
        out.clear();
        RequestBuilder { out, records: Vec::new() }
    }

    pub(super) fn push(&mut self, record: &LogRecord<'_>) {
        let mut attributes = Vec::new();
        record.attributes.each(|name, value| {
            let value = match value {
                Attribute::Text(text) => json!({ "stringValue": text }),
                Attribute::Number(number) => json!({ "intValue": number.to_string() }),
                Attribute::Address(address) => json!({ "stringValue": address.to_string() }),
            };
            attributes.push(json!({ "key": name, "value": value }));
        });
        let body = match &record.body {
            Body::Text(text) => json!({ "stringValue": text }),
            Body::Bytes(bytes) => json!({ "bytesValue": BASE64_STANDARD.encode(bytes) }),
            Body::Map(map) => any_value(map),
        };
        let mut written = Map::new();
        written.insert("timeUnixNano".to_owned(), record.time_ns.to_string().into());
        written.insert("observedTimeUnixNano".to_owned(), record.time_ns.to_string().into());
        if let Some(severity) = &record.severity {
            written.insert("severityNumber".to_owned(), severity.number.into());
            written.insert("severityText".to_owned(), severity.text.into());
        }
        written.insert("body".to_owned(), body);
        written.insert("attributes".to_owned(), attributes.into());
        self.records.push(written.into());
    }

    pub(super) fn finish(self) {
        let service = json!({ "key": "service.name", "value": { "stringValue": SERVICE_NAME } });
        let request = json!({ "resourceLogs": [{
            "resource": { "attributes": [service] },
            "scopeLogs": [{
                "scope": { "name": "sekiwake", "version": env!("CARGO_PKG_VERSION") },
                "logRecords": self.records,
            }],
        }] });
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(self.out, &request);
    }
}

fn any_value(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(truth) => json!({ "boolValue": truth }),
        Value::Number(number) if number.is_i64() => json!({ "intValue": number.to_string() }),
        Value::Number(number) if number.is_u64() => json!({ "stringValue": number.to_string() }),
        Value::Number(number) => json!({ "doubleValue": number }),
        Value::String(text) => json!({ "stringValue": text }),
        Value::Array(values) => {
            json!({ "arrayValue": { "values": values.iter().map(any_value).collect::<Vec<_>>() } })
        }
        Value::Object(map) => {
            let pair = |(name, value): (&String, &Value)| json!({ "key": name, "value": any_value(value) });
            json!({ "kvlistValue": { "values": map.iter().map(pair).collect::<Vec<_>>() } })
        }
    }
}

/// The partial success in a response. `None`: it is not one.
pub(super) fn partial_success(response: &[u8]) -> Option<(u64, Option<String>)> {
    let response: Value = serde_json::from_slice(response).ok()?;
    let partial = response.as_object()?.get("partialSuccess").unwrap_or(&Value::Null);
    let rejected = &partial["rejectedLogRecords"];
    let rejected = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0);
    Some((rejected, partial["errorMessage"].as_str().map(str::to_owned)))
}

/// The message of an error.
pub(super) fn status_message(response: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(response).ok()?["message"].as_str().map(str::to_owned)
}
