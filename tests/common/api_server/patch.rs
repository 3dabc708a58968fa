//! Patches: RFC 7386's, and the strategic one for a node's conditions.

use axum::http::StatusCode;
use gpu_device_plugin::cluster::time::parse;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Refusal};
use super::store::Store;

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// PATCH of a node, or of its status (apiserver's endpoints/handlers/patch.go).
pub(super) fn patch_node(
    store: &mut Store,
    name: &str,
    is_status: bool,
    media_type: &str,
    body: &[u8],
) -> Answer {
    if ![MERGE, STRATEGIC].contains(&media_type) {
        let message = "the body of the request was in an unknown format";
        return Err(Refusal::new(415, "UnsupportedMediaType", message));
    }
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, "BadRequest", error.to_string()))?;
    let Some(old) = store.nodes.get(name).cloned() else {
        return Err(Refusal::not_found("nodes", name));
    };
    check_version(&patch, &old, name)?;
    let mut new = old.clone();
    merge(&mut new, &patch, media_type == STRATEGIC)?;
    // Either way in changes its own part only (registry/core/node/strategy.go).
    let other = if is_status { "spec" } else { "status" };
    new[other] = old[other].clone();
    new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    decode(&mut new)?;
    check_taints(&new, name)?;
    if new != old {
        store.touch(&mut new);
        store.nodes.insert(name.into(), new.clone());
    }
    Ok((StatusCode::OK, new))
}

fn check_version(patch: &Value, old: &Value, name: &str) -> Result<(), Refusal> {
    let wanted = &patch["metadata"]["resourceVersion"];
    if wanted.is_null() || *wanted == old["metadata"]["resourceVersion"] {
        return Ok(());
    }
    match wanted.as_str().map(str::parse::<u64>) {
        Some(Ok(_)) => Err(Refusal::modified("nodes", name)),
        _ => Err(Refusal::internal(500, "strconv.ParseUint: invalid syntax")),
    }
}

/// Merges maps; a null removes; anything else takes the place of what was there.
fn merge(target: &mut Value, patch: &Value, strategic: bool) -> Result<(), Refusal> {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("a map, as of above");
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            ("conditions", Value::Array(changes)) if strategic => {
                let conditions = target.entry(key.clone()).or_insert_with(|| json!([]));
                merge_conditions(conditions, changes)?;
            }
            _ => merge(
                target.entry(key.clone()).or_insert(Value::Null),
                value,
                strategic,
            )?,
        }
    }
    Ok(())
}

/// By `type` (k8s.io/api/core/v1, `NodeStatus`: patchStrategy=merge,
/// patchMergeKey=type). What is new comes first.
fn merge_conditions(conditions: &mut Value, changes: &[Value]) -> Result<(), Refusal> {
    let conditions = conditions.as_array_mut().expect("conditions are a list");
    for change in changes {
        if change["type"].is_null() {
            let message = "map: map[] does not contain declared merge key: type";
            return Err(Refusal::internal(500, message));
        }
        let present = conditions
            .iter_mut()
            .find(|one| one["type"] == change["type"]);
        match present {
            Some(present) => merge(present, change, true)?,
            None => conditions.insert(0, change.clone()),
        }
    }
    Ok(())
}

/// What becomes of JSON in the API server's own types, as far as conditions show.
fn decode(node: &mut Value) -> Result<(), Refusal> {
    let conditions = node["status"]["conditions"].as_array_mut();
    for condition in conditions.into_iter().flatten() {
        let condition = condition.as_object_mut().expect("a condition is a map");
        for field in ["lastHeartbeatTime", "lastTransitionTime"] {
            check_time(condition, field)?;
        }
        condition.entry("status").or_insert_with(|| "".into());
    }
    Ok(())
}

fn check_time(condition: &mut Map<String, Value>, field: &str) -> Result<(), Refusal> {
    let time = condition.entry(field).or_insert(Value::Null);
    let is_time = time.as_str().is_some_and(|time| parse(time).is_some());
    if time.is_null() || is_time {
        return Ok(());
    }
    let what = format!("parsing time {time}");
    Err(Refusal::invalid("", "", "patch", &what))
}

/// One taint a key and effect (pkg/apis/core/validation, `validateNodeTaints`).
fn check_taints(node: &Value, name: &str) -> Result<(), Refusal> {
    let taints = node["spec"]["taints"].as_array();
    let taints: Vec<_> = taints.into_iter().flatten().collect();
    let place = |taint: &Value| (taint["key"].clone(), taint["effect"].clone());
    for (number, taint) in taints.iter().enumerate() {
        if taints[..number]
            .iter()
            .any(|other| place(other) == place(taint))
        {
            let field = format!("metadata.taints[{number}]");
            return Err(Refusal::invalid("Node", name, &field, "Duplicate value"));
        }
    }
    Ok(())
}
