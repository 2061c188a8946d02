//! Messages of the contract as canonical protobuf JSON, for `growctl --output json` and exports.
//!
//! Fields keep the names of the contract and are there when they have their default value, so that a script needs no
//! special case for 0; only what the contract calls "not set" is left out. 64-bit integers are numbers, so that a script
//! can reckon with them; a reader that keeps numbers as doubles has sizes exact up to 8 PiB.

use std::sync::LazyLock;

use prost::Name;
use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, SerializeOptions};

use super::proto::DESCRIPTOR;

#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("the contract's descriptor does not load")]
    Descriptor(#[source] &'static DescriptorError),
    #[error("{0} is no message of the contract")]
    UnknownMessage(String),
    #[error("message does not fit the descriptor of {full_name}")]
    Mismatch { full_name: String, source: prost::DecodeError },
    #[error("cannot write {full_name} as JSON")]
    Write { full_name: String, source: serde_json::Error },
}

static POOL: LazyLock<Result<DescriptorPool, DescriptorError>> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR));

/// One line of JSON.
pub fn to_json(message: &impl Name) -> Result<String, JsonError> {
    let mut line = Vec::new();
    write(message, &mut serde_json::Serializer::new(&mut line))?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The same on several lines, indented, for people.
pub fn to_json_pretty(message: &impl Name) -> Result<String, JsonError> {
    let mut text = Vec::new();
    write(message, &mut serde_json::Serializer::pretty(&mut text))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn write<'a, M: Name, S>(message: &M, to: &'a mut S) -> Result<(), JsonError>
where
    &'a mut S: serde::Serializer<Ok = (), Error = serde_json::Error>,
{
    let pool = POOL.as_ref().map_err(JsonError::Descriptor)?;
    let full_name = M::full_name();
    let descriptor = pool.get_message_by_name(&full_name);
    let descriptor = descriptor.ok_or_else(|| JsonError::UnknownMessage(full_name.clone()))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).map_err(|source| JsonError::Mismatch { full_name: full_name.clone(), source })?;
    let options =
        SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    dynamic.serialize_with_options(to, &options).map_err(|source| JsonError::Write { full_name, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{Job, JobState, ListJobsResponse, Pool};

    #[test]
    fn a_job_keeps_names_numbers_and_defaults() {
        let job = Job {
            job_id: "j".to_owned(),
            state: JobState::Running.into(),
            requested_size_bytes: i64::MAX as u64,
            created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            ..Job::default()
        };
        let line = to_json(&job).unwrap();
        assert!(!line.contains('\n'));
        assert!(line.contains(r#""requested_size_bytes":9223372036854775807"#), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["state"], "RUNNING");
        assert_eq!(value["size_before_bytes"], 0);
        assert_eq!(value["steps"], serde_json::json!([]));
        assert_eq!(value["created_at"], "2023-11-14T22:13:20.005Z");
        assert_eq!(value.get("size_after_bytes"), None);
        assert_eq!(value.get("error"), None);
        let pretty = to_json_pretty(&job).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pretty).unwrap(), value);
    }

    #[test]
    fn lists_and_ratios_are_written() {
        let list = ListJobsResponse { jobs: vec![Job::default(), Job::default()], next_page_token: String::new() };
        let value: serde_json::Value = serde_json::from_str(&to_json(&list).unwrap()).unwrap();
        assert_eq!(value["jobs"].as_array().unwrap().len(), 2);
        let pool = Pool { overcommit: 1.5, ..Pool::default() };
        let line = to_json(&pool).unwrap();
        assert!(line.contains(r#""overcommit":1.5"#), "{line}");
    }
}
