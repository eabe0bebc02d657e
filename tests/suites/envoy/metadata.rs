//! What a mesh tells its Envoys about themselves, they tell the agent: labels, annotations and
//! settings of the pod stand in the first request of each stream, beside the names of all of
//! Envoy's extensions.

use super::FIRST;
use super::mesh::Mesh;

/// Octets of metadata, much for a mesh.
const METADATA: usize = 64 * 1024;

const NODES: [&str; 2] = ["id: mtls-server,", "id: mtls-client,"];

fn with_metadata(file: &str) -> String {
    let metadata = "x".repeat(METADATA);
    let more = |node: &str| format!("{node} metadata: {{ ANNOTATIONS: {metadata} }},");
    let changed = NODES.iter().fold(file.to_owned(), |file, node| {
        file.replace(node, &more(node))
    });
    assert_ne!(changed, file, "there is a node in it");
    changed
}

#[tokio::test]
async fn envoys_of_a_mesh_with_much_to_say_of_themselves_get_their_secrets() {
    let mesh = Mesh::with("metadata", "1h", with_metadata).await;
    mesh.first_answer(FIRST).await;
    mesh.refused_nothing();
}
