//! The playground, the documentation page and the OpenAPI document. The pages load nothing from other servers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::common::*;

#[tokio::test]
async fn page_loads_nothing_from_other_servers() {
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/playground/style.css", "text/css; charset=utf-8"),
        ("/playground/script.js", "text/javascript; charset=utf-8"),
        ("/playground/document.js", "text/javascript; charset=utf-8"),
        ("/playground/map.js", "text/javascript; charset=utf-8"),
        ("/playground/requests.js", "text/javascript; charset=utf-8"),
        ("/playground/vectors.js", "text/javascript; charset=utf-8"),
    ] {
        let reply = get(ready().await, path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, content_type));
        let policy = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        assert_eq!(reply.header("content-security-policy"), policy);
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("referrer-policy"), "no-referrer");
        assert_eq!(reply.header("cache-control"), "no-cache");
        check_no_other_host(path, reply.text());
    }
    let script = get(ready().await, "/playground/script.js").await;
    let imports =
        script.text().split(" from \"./").skip(1).map(|rest| rest.split('"').next().unwrap());
    let imports: BTreeSet<&str> = imports.collect();
    assert_eq!(imports, BTreeSet::from(["document.js", "map.js", "requests.js", "vectors.js"]));
    let page = get(ready().await, "/").await;
    let loaded = loaded(page.text());
    assert!(loaded.len() >= 2, "{loaded:?}");
    for path in loaded.into_iter().filter(|path| !path.starts_with("data:")) {
        let reply = get(ready().await, &format!("/{}", path.trim_start_matches('/'))).await;
        assert!(reply.status == 200 || reply.status == 303, "{path}");
    }
}

/// The addresses that a page loads or links to.
fn loaded(html: &str) -> Vec<&str> {
    let attributes = ["src=\"", "href=\""];
    let values = attributes.iter().flat_map(|attribute| html.split(attribute).skip(1));
    values.map(|rest| rest.split('"').next().unwrap()).filter(|url| !url.starts_with('#')).collect()
}

/// Asserts that a text contains no address of another server. XML namespaces are allowed: they look like addresses, but
/// browsers do not load them.
fn check_no_other_host(path: &str, text: &str) {
    let text = text.replace("http://www.w3.org/", "");
    for scheme in ["http://", "https://", "ws://", "wss://", "=\"//", "('//", "url(//"] {
        assert!(!text.contains(scheme), "{path} has {scheme}");
    }
}

#[tokio::test]
async fn documentation_loads_nothing_from_other_servers() {
    let state = ready().await;
    let reply = get(state, "/docs").await;
    assert_eq!((reply.status, reply.header("location")), (303, "/docs/"));
    let page = get(state, "/docs/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    check_no_other_host("/docs/", page.text());
    let loaded = loaded(page.text());
    assert!(loaded.len() >= 4, "{loaded:?}");
    for path in loaded {
        let file = path.strip_prefix("./").unwrap_or(path);
        let reply = get(state, &format!("/docs/{file}")).await;
        assert_eq!(reply.status, 200, "{path}");
        let expected = match file.rsplit('.').next().unwrap() {
            "css" => "text/css",
            "js" => "text/javascript",
            "png" => "image/png",
            other => panic!("{other}"),
        };
        assert!(reply.header("content-type").starts_with(expected), "{path}: {reply:?}");
        if file.ends_with("css") {
            check_no_other_host(path, reply.text());
        }
    }
    let settings = get(state, "/docs/swagger-initializer.js").await;
    check_no_other_host("/docs/swagger-initializer.js", settings.text());
    assert!(settings.text().contains("\"/openapi.json\""), "{}", settings.text());
    // Otherwise Swagger UI sends the document to a validator on the internet.
    assert!(settings.text().contains("\"validatorUrl\": \"none\""), "{}", settings.text());
}

/// The operations of a document.
fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        let item = item.as_object().unwrap().iter();
        item.map(|(method, operation)| ((path.clone(), method.clone()), operation))
    });
    operations.collect()
}

#[tokio::test]
async fn openapi_document_has_every_route() {
    let document = get(ready().await, "/openapi.json").await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let operations = operations(&document);
    let named: Vec<(&str, &str)> =
        operations.keys().map(|(path, method)| (path.as_str(), method.as_str())).collect();
    let expected = [
        ("/", "post"),
        ("/decode", "post"),
        ("/embed", "post"),
        ("/embeddings", "post"),
        ("/health", "get"),
        ("/info", "get"),
        ("/livez", "get"),
        ("/metrics", "get"),
        ("/readyz", "get"),
        ("/rerank", "post"),
        ("/score", "post"),
        ("/similarity", "post"),
        ("/tokenize", "post"),
        ("/v1/embeddings", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{id}", "get"),
        ("/v1/rerank", "post"),
        ("/v1/score", "post"),
        ("/v2/embed", "post"),
        ("/v2/rerank", "post"),
    ];
    assert_eq!(named, expected);
    let ids: BTreeSet<&str> =
        operations.values().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), expected.len());
    for ((path, method), operation) in &operations {
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("200"), "{path}");
        let reference = "#/components/schemas/ErrorBody";
        for (status, response) in responses.iter().filter(|(status, _)| *status != "200") {
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(schema, reference, "{path} {status}");
        }
        if method == "post" {
            assert!(responses.contains_key("4XX") && responses.contains_key("5XX"), "{path}");
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            assert!(schema.as_str().unwrap().ends_with("Request"), "{path}: {schema}");
        }
    }
}

#[tokio::test]
async fn openapi_references_resolve() {
    let document = get(ready().await, "/openapi.json").await.ok();
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 30);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    // The schema has the minimum lengths of lists and the minimum values of numbers.
    let request = &document["components"]["schemas"]["RerankRequest"]["properties"];
    assert_eq!(request["documents"]["minItems"], 1);
    for (name, minimum) in [("top_n", 0), ("max_tokens_per_doc", 0), ("truncate_prompt_tokens", -1)]
    {
        assert_eq!(request[name]["minimum"], minimum, "{name}");
    }
    // The schema of errors has the keys of real errors.
    let detail = &document["components"]["schemas"]["ErrorDetail"]["properties"];
    let mut names: Vec<&String> = detail.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["code", "message", "param", "type"]);
    assert_eq!(document, serde_json::to_value(qwen3_embed_server::openapi()).unwrap());
}

fn collect_references(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").map(|to| to.as_str().unwrap().to_owned()));
            fields.values().for_each(|value| collect_references(value, references));
        }
        Value::Array(items) => {
            items.iter().for_each(|value| collect_references(value, references));
        }
        _ => {}
    }
}
