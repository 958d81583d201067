#!/usr/bin/env python3
"""Re-encodes the facts about Kubernetes' types and roles into the small tables the api crate compiles in.

usage: facts.py DIRECTORY   (holds types-1.36.json, protobuf-1.36.json, discovery-1.36.json and bootstrap-rbac-1.36.json)

Writes src/facts/types.txt, src/facts/protobuf.txt, src/facts/rbac.txt and src/facts/discovery.txt (what tests compare with)
beside this script. What is kept of types: every kind that discovery lists,
its list, the bodies of its subresources, a few meta types, and whatever these reach. Nothing else is carried along.

types.txt, one block per definition (names without their leading `io.k8s.`):
    NAME [a]                         a: the whole struct is atomic
    @GROUP VERSION KIND              group, version and kind of an object (group `-` for the core group)
    <tab>FIELD TYPE [FLAG…]
  TYPE   s i32 i64 f b y(bytes) q(uantity) o(int or string) t(ime) m(icrotime) * (any) =NAME (struct)
         =NAME+ =NAME- (struct, made atomic or granular here) [atomic]T [set]T [key,key]T {}T {a}T(atomic map)
  FLAG   ! required · z zero is absent · w always written, also when zero · d=JSON default · e=A|B allowed values (~ is a space)
         p=merge,retainKeys:KEY patch strategy and merge key

protobuf.txt, one block per message:
    NAME
    <tab>TAG FIELD SHAPE ELEMENT [p][o][i]
  SHAPE  . one · [ list · { map
  ELEMENT s i(nteger) b f y or the last of the special names q o t m, or =NAME; FLAG p pointer · o omitempty · i inline

rbac.txt, one block per role, one line per binding (`-` is an empty word, the core group or the cluster's scope):
    role NAMESPACE NAME [LABEL=VALUE…]
    <tab>VERBS GROUPS RESOURCES [NAMES]     lists with commas
    <tab>VERBS URLS
    <tab>+LABEL                             aggregates the roles that have LABEL=true
    binding NAMESPACE NAME ROLE SUBJECT…    user:NAME group:NAME account:NAMESPACE/NAME

discovery.txt, one line per resource in the order of the document (`-` is empty):
    GROUP VERSION RESOURCE SINGULAR KIND SCOPE VERBS SHORTNAMES CATEGORIES
    <tab>SUBRESOURCE GROUP VERSION KIND VERBS
"""

import json
import pathlib
import sys

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
SPECIAL = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "o",
    META + "Time": "t",
    META + "MicroTime": "m",
    META + "FieldsV1": "*",
    META + "Patch": "*",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "*",
    EXTENSIONS + "JSON": "*",
    EXTENSIONS + "JSONSchemaPropsOrArray": "*",
    EXTENSIONS + "JSONSchemaPropsOrBool": "*",
    EXTENSIONS + "JSONSchemaPropsOrStringArray": "*",
}
# Meta types that clients send or get under any group.
ROOTS = [META + n for n in ("Status", "DeleteOptions", "WatchEvent", "ListMeta", "ObjectMeta",
                                "APIVersions", "APIGroup", "APIGroupList", "APIResourceList")] + [
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.api.authentication.v1.TokenRequest",
    "io.k8s.api.core.v1.Binding",
]
# Messages that are no definitions: option bodies, and what the table lacks (tags are part of the wire interface).
MESSAGES = [META + n for n in ("CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions",
                               "PartialObjectMetadata", "PartialObjectMetadataList", "List")]
AGGREGATOR = "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1."
EXTRA_MESSAGES = {
    META + "WatchEvent": [
        [1, "type", "", "string", False, False, False],
        [2, "object", "", "io.k8s.apimachinery.pkg.runtime.RawExtension", False, False, False],
    ],
    AGGREGATOR + "APIService": [
        [1, "metadata", "", META + "ObjectMeta", False, True, False],
        [2, "spec", "", AGGREGATOR + "APIServiceSpec", False, True, False],
        [3, "status", "", AGGREGATOR + "APIServiceStatus", False, True, False],
    ],
    AGGREGATOR + "APIServiceList": [
        [1, "metadata", "", META + "ListMeta", False, True, False],
        [2, "items", "list", AGGREGATOR + "APIService", False, False, False],
    ],
    AGGREGATOR + "APIServiceSpec": [
        [1, "service", "", AGGREGATOR + "ServiceReference", True, True, False],
        [2, "group", "", "string", False, True, False],
        [3, "version", "", "string", False, True, False],
        [4, "insecureSkipTLSVerify", "", "bool", False, True, False],
        [5, "caBundle", "", "bytes", False, True, False],
        [7, "groupPriorityMinimum", "", "int32", False, False, False],
        [8, "versionPriority", "", "int32", False, False, False],
    ],
    AGGREGATOR + "ServiceReference": [
        [1, "namespace", "", "string", False, True, False],
        [2, "name", "", "string", False, True, False],
        [3, "port", "", "int32", True, True, False],
    ],
    AGGREGATOR + "APIServiceStatus": [
        [1, "conditions", "list", AGGREGATOR + "APIServiceCondition", False, True, False],
    ],
    AGGREGATOR + "APIServiceCondition": [
        [1, "type", "", "string", False, False, False],
        [2, "status", "", "string", False, False, False],
        [3, "lastTransitionTime", "", META + "Time", False, True, False],
        [4, "reason", "", "string", False, True, False],
        [5, "message", "", "string", False, True, False],
    ],
}
SCALARS = {"string": "s", "int32": "i", "int64": "i", "bool": "b", "float64": "f", "bytes": "y",
           "k8s.io/apimachinery/pkg/types.UID": "s", "k8s.io/apimachinery/pkg/types.NodeName": "s"}


def definition_name(go_name):
    """k8s.io/api/core/v1.Pod -> io.k8s.api.core.v1.Pod"""
    if go_name.startswith("k8s.io/"):
        return "io.k8s." + go_name[len("k8s.io/"):].replace("/", ".")
    return go_name


def short(name):
    return name.removeprefix("io.k8s.")


# ---- protobuf rows ----------------------------------------------------------------------------------------------

def element(raw):
    """(shape or None, element name) of a row's element; named lists and maps are spelled as nested lists."""
    if isinstance(raw, str):
        return None, raw if raw in SCALARS else definition_name(raw)
    if raw[0] == "LISTWRAP":
        return None, META + "StringList"
    inner = raw[2]
    if isinstance(inner, list):
        inner = inner[0] + "." + inner[1]
    return "named", inner if inner in SCALARS else definition_name(inner)


def read_messages(path):
    messages = {}
    for name, rows in json.loads(path.read_text()).items():
        out = []
        for tag, field, _wire, shape, raw, pointer, omitempty, inline in rows:
            _, elem = element(raw)
            out.append([tag, field, shape.removeprefix("NAMED"), elem, pointer, omitempty, inline])
        messages[definition_name(name)] = out
    messages[META + "StringList"] = [[1, "items", "list", "string", False, False, False]]
    messages.update(EXTRA_MESSAGES)
    return messages


def reach_messages(messages, roots):
    seen, todo = set(), [r for r in roots if r in messages]
    while todo:
        name = todo.pop()
        if name in seen or name not in messages:
            continue
        seen.add(name)
        todo.extend(row[3] for row in messages[name])
    return seen


def flat_rows(messages, name):
    """Rows as JSON shows them: inline messages are unfolded."""
    rows = {}
    for row in messages.get(name, []):
        if row[6]:
            rows.update(flat_rows(messages, row[3]))
        else:
            rows[row[1]] = row
    return rows


def protobuf_element(elem):
    if elem in SCALARS:
        return SCALARS[elem]
    special = SPECIAL.get(elem)
    if special == "*":
        return "*" + elem.rsplit(".", 1)[1]
    if elem == META + "StringList":
        return "list"
    return special or "=" + short(elem)


def write_messages(path, messages, keep):
    lines = ["# Written by facts.py, which explains the form."]
    for name in sorted(keep):
        if name in SPECIAL or name == META + "StringList":
            continue
        lines.append(short(name))
        for tag, field, shape, elem, pointer, omitempty, inline in messages[name]:
            mark = {"": ".", "list": "[", "map": "{"}[shape]
            flags = "".join(f for f, on in (("p", pointer), ("o", omitempty), ("i", inline)) if on)
            lines.append(f"\t{tag} {field or '-'} {mark} {protobuf_element(elem)} {flags}".rstrip())
    path.write_text("\n".join(lines) + "\n")


# ---- types ------------------------------------------------------------------------------------------------------

def reference(schema):
    if "$ref" in schema:
        return schema["$ref"].removeprefix("#/definitions/")
    if "allOf" in schema:
        return reference(schema["allOf"][0])
    return None


def references(schema):
    found = [reference(schema)] if reference(schema) else []
    for child in schema.get("properties", {}).values():
        found += references(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += references(schema[key])
    return found


def reach_types(types, roots):
    seen, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name in seen or name in SPECIAL:
            continue
        seen.add(name)
        todo.extend(references(types[name]))
    return seen


def type_text(schema):
    name = reference(schema)
    if name:
        if name in SPECIAL:
            return SPECIAL[name]
        here = {"atomic": "+", "granular": "-"}.get(schema.get("x-kubernetes-map-type"), "")
        return "=" + short(name) + here
    kind = schema.get("type")
    if kind == "string":
        return "y" if schema.get("format") == "byte" else "s"
    if kind == "integer":
        return {"int32": "i32", "int64": "i64"}[schema.get("format", "int64")]
    if kind in ("number", "boolean"):
        return {"number": "f", "boolean": "b"}[kind]
    if kind == "array":
        return "[" + list_merge(schema) + "]" + type_text(schema["items"])
    if kind == "object" and "additionalProperties" in schema:
        atomic = "a" if schema.get("x-kubernetes-map-type") == "atomic" else ""
        return "{" + atomic + "}" + type_text(schema["additionalProperties"])
    if kind == "object" and "properties" not in schema:
        return "*"
    raise SystemExit(f"no text for {schema}")


def list_merge(schema):
    declared = schema.get("x-kubernetes-list-type")
    if declared == "map":
        return ",".join(schema["x-kubernetes-list-map-keys"])
    if declared:
        return declared
    if "merge" in schema.get("x-kubernetes-patch-strategy", "").split(","):
        return schema.get("x-kubernetes-patch-merge-key", "set")
    return "atomic"


def zero_flag(row, text):
    """z: Go drops the zero value; w: Go writes it even when nobody set it."""
    _tag, _field, shape, _elem, pointer, omitempty, _inline = row
    if pointer:
        return None
    if shape or text == "y":
        return "z" if omitempty else None
    if text == "o":
        return "z"
    if text[0] in "sifb":
        return "z" if omitempty else "w"
    if text[0] in "=q":
        return "w"
    return None


def field_line(name, schema, required, rows):
    text = type_text(schema)
    flags = []
    if required:
        flags.append("!")
    row = rows.get(name)
    if row:
        flag = zero_flag(row, text)
        if flag:
            flags.append(flag)
    elif name in ("kind", "apiVersion"):
        flags.append("z")
    default = schema.get("default")
    if default not in (None, "", 0, False, {}):
        flags.append("d=" + json.dumps(default, separators=(",", ":")))
    inner = schema
    while isinstance(inner.get("items", inner.get("additionalProperties")), dict):
        inner = inner.get("items", inner.get("additionalProperties"))
    if inner.get("enum"):
        flags.append("e=" + "|".join(inner["enum"]).replace(" ", "~"))
    strategy = schema.get("x-kubernetes-patch-strategy")
    if strategy:
        key = schema.get("x-kubernetes-patch-merge-key")
        flags.append("p=" + strategy + (":" + key if key else ""))
    return "\t" + " ".join([name, text, *flags])


def restore_missing(types, messages):
    """The types lost every field that is called like a documentation keyword; the rows still have them."""
    for name, schema in types.items():
        properties = schema.get("properties")
        if properties is None or name in SPECIAL:
            continue
        for field, row in flat_rows(messages, name).items():
            if field not in properties:
                elem = row[3]
                properties[field] = {"type": "string"} if elem == "string" else {"$ref": "#/definitions/" + elem}


def kind_line(name, schema):
    kinds = schema.get("x-kubernetes-group-version-kind", [])
    for k in kinds:
        if len(kinds) == 1 or (k["group"] == "" and k["version"] == "v1"):
            return ["@%s %s %s" % (k["group"] or "-", k["version"], k["kind"])]
    return []


def write_types(path, types, messages, keep):
    lines = ["# Written by facts.py, which explains the form."]
    for name in sorted(keep):
        schema = types[name]
        atomic = " a" if schema.get("x-kubernetes-map-type") == "atomic" else ""
        lines.append(short(name) + atomic)
        lines += kind_line(name, schema)
        rows = flat_rows(messages, name)
        required = schema.get("required", [])
        for field, child in sorted(schema.get("properties", {}).items()):
            lines.append(field_line(field, child, field in required, rows))
    path.write_text("\n".join(lines) + "\n")


# ---- roots ------------------------------------------------------------------------------------------------------

def served_kinds(path):
    discovery = json.loads(path.read_text())
    for document in discovery.values():
        for group in document["items"]:
            for version in group["versions"]:
                for resource in version["resources"]:
                    for served in [resource, *resource.get("subresources", [])]:
                        kind = served["responseKind"]
                        yield (kind["group"] or group["metadata"].get("name", ""),
                               kind["version"] or version["version"], kind["kind"])


# ---- roles ------------------------------------------------------------------------------------------------------

# What a fork of Kubernetes adds is in the data, but not in Kubernetes.
FORKS = "system:openshift:"
ALWAYS = {"kubernetes.io/bootstrapping": "rbac-defaults"}


def words(items):
    return ",".join(item or "-" for item in items)


def rule_line(rule):
    if rule.get("nonResourceURLs"):
        return "\t" + words(rule["verbs"]) + " " + words(rule["nonResourceURLs"])
    parts = [rule["verbs"], rule["apiGroups"], rule["resources"]]
    if rule.get("resourceNames"):
        parts.append(rule["resourceNames"])
    return "\t" + " ".join(words(part) for part in parts)


def role_lines(role):
    meta = role["metadata"]
    labels = [f"{k}={v}" for k, v in meta["labels"].items() if ALWAYS.get(k) != v]
    yield " ".join(["role", meta.get("namespace") or "-", meta["name"], *labels])
    for selector in role.get("aggregationRule", {}).get("clusterRoleSelectors", []):
        (label, value), = selector["matchLabels"].items()
        assert value == "true"
        yield "\t+" + label
    for rule in role.get("rules") or []:
        yield rule_line(rule)


def subject_word(subject):
    if subject["kind"] == "ServiceAccount":
        return f"account:{subject['namespace']}/{subject['name']}"
    return f"{subject['kind'].lower()}:{subject['name']}"


def write_rbac(path, facts):
    lines = ["# Written by facts.py, which explains the form."]
    for role in facts["clusterroles"] + facts["roles"]:
        if not role["metadata"]["name"].startswith(FORKS):
            lines += role_lines(role)
    for binding in facts["clusterrolebindings"]:
        name = binding["metadata"]["name"]
        if not name.startswith(FORKS):
            assert binding["roleRef"]["kind"] == "ClusterRole"
            subjects = [subject_word(subject) for subject in binding.get("subjects") or []]
            lines.append(" ".join(["binding", "-", name, binding["roleRef"]["name"], *subjects]))
    path.write_text("\n".join(lines) + "\n")


def write_discovery(path, document):
    lines = ["# Written by facts.py, which explains the form."]

    def add(indent, *words):
        words = [",".join(word) if isinstance(word, list) else word for word in words]
        lines.append(indent + " ".join(word or "-" for word in words))

    for part in ("api", "apis"):
        for group in document[part]["items"]:
            for version in group["versions"]:
                for r in version["resources"]:
                    answer = r["responseKind"]
                    assert not answer["group"] and not answer["version"]
                    add("", group["metadata"].get("name", ""), version["version"], r["resource"], r["singularResource"],
                        answer["kind"], r["scope"], r["verbs"], r.get("shortNames", []), r.get("categories", []))
                    for sub in r.get("subresources", []):
                        answer = sub["responseKind"]
                        add("\t", sub["subresource"], answer["group"], answer["version"], answer["kind"], sub["verbs"])
    path.write_text("\n".join(lines) + "\n")


def main():
    source = pathlib.Path(sys.argv[1])
    target = pathlib.Path(__file__).parent / "src" / "facts"
    types = json.loads((source / "types-1.36.json").read_text())
    messages = read_messages(source / "protobuf-1.36.json")
    restore_missing(types, messages)
    by_kind = {}
    for name, schema in types.items():
        for k in schema.get("x-kubernetes-group-version-kind", []):
            by_kind.setdefault((k["group"], k["version"], k["kind"]), name)
    roots, options = list(ROOTS), list(MESSAGES)
    for group, version, kind in served_kinds(source / "discovery-1.36.json"):
        if (group, version, kind) in by_kind:
            roots.append(by_kind[(group, version, kind)])
            if (group, version, kind + "List") in by_kind:
                roots.append(by_kind[(group, version, kind + "List")])
        elif kind.endswith("Options"):
            options.append(f"io.k8s.api.core.{version}.{kind}")
        else:
            raise SystemExit(f"no definition for {group}/{version} {kind}")
    keep = reach_types(types, roots)
    target.mkdir(exist_ok=True)
    write_types(target / "types.txt", types, messages, keep)
    write_messages(target / "protobuf.txt", messages, reach_messages(messages, [*keep, *options]))
    write_rbac(target / "rbac.txt", json.loads((source / "bootstrap-rbac-1.36.json").read_text()))
    write_discovery(target / "discovery.txt", json.loads((source / "discovery-1.36.json").read_text()))


if __name__ == "__main__":
    main()
