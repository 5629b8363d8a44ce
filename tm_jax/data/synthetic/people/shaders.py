"""GLSL of the people: light, skin, eyes, hair, cloth.

Software rasterisers pay for every fragment, and for each of its instructions. So whatever
varies slowly (diffuse light, shadow, occlusion, sheen) is computed at the vertices, which are
dense, and a fragment does no more than a texture, one highlight and the tone curve.
Colours are linear until `finish`.
"""

_HEAD = "#version 330 core\n"

_SKINNING = """
uniform mat4 camera;
uniform mat4 bones[4];
uniform mat4 body;
uniform float breath;
vec3 posed(vec3 p, vec4 w) {
  float chest = 1.0 - w.x - w.y - w.z - w.w;
  p += chest * breath * smoothstep(-3.2, -1.9, p.y) * vec3(0.0, 0.035, 0.015);
  vec4 q = vec4(p, 1.0);
  vec3 r = chest * (body * q).xyz;
  r += w.x * (bones[0] * q).xyz + w.y * (bones[1] * q).xyz;
  return r + w.z * (bones[2] * q).xyz + w.w * (bones[3] * q).xyz;
}
vec3 turned(vec3 n, vec4 w) {
  vec3 r = n * (1.0 - w.x - w.y - w.z - w.w);
  r += w.x * (mat3(bones[0]) * n) + w.y * (mat3(bones[1]) * n);
  return normalize(r + w.z * (mat3(bones[2]) * n) + w.w * (mat3(bones[3]) * n));
}
"""

_LIGHT = """
uniform vec3 eye, key, key_colour, fill, fill_colour, rim, rim_colour, sky, ground;
uniform vec2 turn;
// Baked light (see bake.py): visibility at three turns of the head, and its slope by nodding.
float lit(vec4 v) {
  float yaw = turn.x < 0.0 ? mix(v.y, v.x, -turn.x) : mix(v.y, v.z, turn.x);
  return clamp(yaw + v.w * turn.y, 0.0, 1.0);
}
vec3 ambient(vec3 n) { return mix(ground, sky, n.y * 0.5 + 0.5); }
vec3 wrapped(float nl, vec3 w) { return max(vec3(0.0), (nl + w) / (1.0 + w)); }
float pow5(float x) { float y = x * x; return y * y * x; }
float lobe(vec3 n, vec3 h, float a2) {
  float nh = max(dot(n, h), 0.0), d = nh * nh * (a2 - 1.0) + 1.0;
  return a2 / (3.14159 * d * d);
}
"""

_FINISH = """
// Filmic curve of Hejl and Burgess-Dawson; it includes the display's gamma.
vec3 finish(vec3 c) {
  vec3 x = max(vec3(0.0), c * 0.60 - 0.003);
  return (x * (6.2 * x + 0.5)) / (x * (6.2 * x + 1.7) + 0.06);
}
float hash(vec2 p) { return fract(sin(dot(p, vec2(12.9898, 78.233))) * 43758.5453); }
float noise(vec2 p) {
  vec2 i = floor(p), f = fract(p);
  f = f * f * (3.0 - 2.0 * f);
  return mix(mix(hash(i), hash(i + vec2(1, 0)), f.x),
             mix(hash(i + vec2(0, 1)), hash(i + vec2(1, 1)), f.x), f.y);
}
"""

# region: lips, lids, inside of the mouth, ears. extra: occlusion shut, open; scalp; beard.
SKIN_VERTEX = _HEAD + _SKINNING + _LIGHT + """
in vec3 position, normal, canon; in vec4 weights, region, extra, baked;
uniform float opening, roots, stubble, gloss; uniform vec3 hair, skin;
out vec3 light, sheen, bent, half_way, tint; out vec2 map_uv; out vec4 mask;
uniform vec4 face_box;
void main() {
  vec3 at = posed(position, weights), n = turned(normal, weights), v = normalize(eye - at);
  float ao = mix(mix(extra.x, extra.y, opening), 1.0, 0.08);
  float shadow = lit(baked);
  vec3 w = vec3(0.30, 0.14, 0.09);                    // Red light travels furthest in skin.
  vec3 soft = mix(vec3(shadow), sqrt(vec3(shadow)), vec3(0.55, 0.1, 0.0));
  light = key_colour * wrapped(dot(n, key), w) * soft;
  light += fill_colour * wrapped(dot(n, fill), w + 0.15) * (0.3 + 0.7 * ao);
  light += rim_colour * wrapped(dot(n, rim), w) * 0.45 * ao;
  light += ambient(n) * mix(vec3(ao), sqrt(vec3(ao)), vec3(0.6, 0.15, 0.1)) * 1.25;
  float nv = max(dot(n, v), 0.0), edge = pow5(1.0 - nv), f0 = 0.028, a2 = 0.05;
  sheen = fill_colour * lobe(n, normalize(fill + v), a2) * f0 * 0.5 * max(dot(n, fill), 0.0) * ao;
  sheen += rim_colour * lobe(n, normalize(rim + v), a2) * 0.25 * edge * max(dot(n, rim), 0.0) * ao;
  sheen += ambient(reflect(-v, n)) * (0.012 + 0.22 * edge) * ao * ao * 0.6;
  half_way = normalize(key + v);
  float front = smoothstep(0.15, 0.5, canon.z);
  float oil = 0.6 + 0.55 * smoothstep(0.32, 0.0, abs(canon.x)) * front;
  float inside = smoothstep(0.3, 0.8, region.z);
  float deep = smoothstep(0.75, 1.5, canon.z);
  mask = vec4(region.x, shadow * smoothstep(-0.05, 0.3, dot(n, key)) * oil * (0.4 + 0.6 * ao),
      front, inside);
  if (inside > 0.01) {
    float cave = mix(1.0, 0.03 + 0.5 * deep * deep * (0.1 + 0.9 * opening), inside);
    light *= cave; sheen *= cave; mask.y *= cave;
  }
  tint = mix(vec3(1.0), vec3(1.05, 0.80, 0.77), region.w * 0.5);
  float grown = max(roots * smoothstep(-0.03, 0.09, extra.z), stubble * extra.w * 0.7);
  mask.y *= 1.0 - 0.75 * grown;
  tint = mix(tint, 0.75 * hair / skin, grown);
  bent = n;
  map_uv = (canon.xy - face_box.xy) * face_box.zw;
  gl_Position = camera * vec4(at, 1.0);
}
"""

SKIN = _HEAD + _FINISH + """
in vec3 light, sheen, bent, half_way, tint; in vec2 map_uv; in vec4 mask;
uniform sampler2D face; uniform vec3 skin, lips, key_colour; uniform float gloss;
out vec4 colour;
void main() {
  vec3 map = texture(face, map_uv).rgb * 2.0;
  vec3 albedo = skin * mix(vec3(1.0), map, mask.z) * tint;
  float lip = smoothstep(0.15, 0.85, mask.x) * (1.0 - mask.w);
  albedo = mix(albedo, lips * (0.35 + 0.65 * map), lip * 0.85);
  albedo = mix(albedo, vec3(0.30, 0.075, 0.07), mask.w);
  float a2 = mix(mix(0.10, 0.055, gloss), mix(0.045, 0.026, gloss), max(lip, mask.w));
  vec3 n = normalize(bent);
  float nh = max(dot(n, half_way), 0.0), d = nh * nh * (a2 - 1.0) + 1.0;
  float shine = (0.0042 - 0.0012 * lip) * a2 / (d * d) + 0.0010 * lip;
  colour = vec4(finish(albedo * light * 0.43 + sheen + key_colour * shine * mask.y * 1.9
      * min(1.0, map.g * 1.25)), 1.0);
}
"""

# Teeth and tongue share the skin's vertices. extra.zw: gum-to-tip (or -1), jaw.
MOUTH_VERTEX = _HEAD + _SKINNING + _LIGHT + """
in vec3 position, normal, canon; in vec4 weights, extra;
uniform float opening, tongue; uniform vec3 enamel;
out vec3 shade, bent, half_way; out float gleam;
void main() {
  vec3 at = posed(position, weights), n = turned(normal, weights), v = normalize(eye - at);
  if (dot(n, v) < 0.0) n = -n;
  vec3 albedo; float deep;
  gleam = 0.006;
  if (tongue > 0.5) {
    albedo = vec3(0.48, 0.17, 0.165) * (0.80 + 0.20 * smoothstep(0.0, 0.06, abs(canon.x)));
    deep = smoothstep(0.80, 1.45, canon.z) * 0.55;
    gleam = 0.003;
  } else if (extra.z < -0.5) {
    albedo = vec3(0.55, 0.21, 0.20);
    deep = smoothstep(1.0, 1.5, canon.z) * 0.7;
  } else {
    albedo = mix(enamel * vec3(0.88, 0.76, 0.60), enamel, smoothstep(0.0, 0.6, extra.z));
    deep = mix(0.06, 1.0, smoothstep(1.05, 1.50, canon.z));
    deep *= mix(0.6, 1.0, smoothstep(-0.05, 0.5, extra.z)) * (extra.w > 0.5 ? 0.70 : 1.0);
  }
  float shadow = 0.8;
  deep *= 0.68 + 0.32 * smoothstep(0.0, 0.5, opening);
  vec3 w = vec3(0.35, 0.28, 0.24);
  vec3 light = key_colour * wrapped(dot(n, key), w) * mix(0.35, 1.0, shadow);
  light += fill_colour * wrapped(dot(n, fill), w) + ambient(n) * 1.2;
  shade = albedo * light * 0.40 * deep;
  gleam *= deep * shadow;
  bent = n; half_way = normalize(key + v);
  gl_Position = camera * vec4(at, 1.0);
}
"""

MOUTH = _HEAD + _FINISH + """
in vec3 shade, bent, half_way; in float gleam;
uniform vec3 key_colour;
out vec4 colour;
void main() {
  float nh = max(dot(normalize(bent), half_way), 0.0), d = nh * nh * (0.012 - 1.0) + 1.0;
  colour = vec4(finish(shade + key_colour * gleam * 0.012 / (d * d)), 1.0);
}
"""

EYE_VERTEX = _HEAD + _SKINNING + _LIGHT + """
in vec3 position;
uniform vec3 centre; uniform float radius; uniform mat3 gaze, to_head; uniform vec4 weights;
uniform float lid_upper, lid_lower, side; uniform vec4 baked;
out vec3 bent, local, light, mirror; out vec2 open; out float shadow;
void main() {
  local = position;
  float front = smoothstep(0.80, 0.95, position.z);   // The cornea bulges.
  vec3 at = posed(centre + radius * (gaze * position * (1.0 + 0.055 * front)), weights);
  bent = turned(gaze * position, weights);
  vec3 h = to_head * bent;
  float up = smoothstep(lid_upper - 0.02, lid_upper - 0.34, h.y);
  float low = smoothstep(lid_lower, lid_lower + 0.18, h.y);
  float corner = 1.0 - smoothstep(0.40, 0.95, abs(h.x + 0.08 * side));
  open = vec2(mix(0.16, 1.0, up) * mix(0.55, 1.0, low) * mix(0.35, 1.0, corner), abs(h.x));
  shadow = lit(baked);
  light = key_colour * wrapped(dot(bent, key), vec3(0.3)) * mix(0.25, 1.0, shadow);
  light += fill_colour * wrapped(dot(bent, fill), vec3(0.3)) + ambient(bent) * 1.1;
  mirror = normalize(at - eye);
  gl_Position = camera * vec4(at, 1.0);
}
"""

EYE = _HEAD + _FINISH + """
in vec3 bent, local, light, mirror; in vec2 open; in float shadow;
uniform vec3 iris, key, key_colour, fill, fill_colour, sky, ground; uniform float pupil, seed;
out vec4 colour;
void main() {
  vec3 n = normalize(bent), v = -mirror, k = normalize(local);
  float r = length(k.xy) / 0.46;                       // 1 at the limbus
  float angle = atan(k.y, k.x);
  float fibre = noise(vec2(angle * 7.0 + seed, r * 2.5)) * 0.55 + noise(vec2(angle * 19.0, r
      * 4.0 + seed)) * 0.45;
  vec3 hue = iris * (0.50 + 1.05 * fibre);
  hue = mix(hue * vec3(1.3, 1.05, 0.7), hue, smoothstep(0.38, 0.62, r));
  hue *= mix(1.0, 0.16, smoothstep(0.72, 1.0, r)) * smoothstep(pupil - 0.07, pupil + 0.05, r);
  // Light bends in the cornea and gathers on the far side of the iris.
  hue *= 0.75 + 0.75 * smoothstep(0.25, -0.45, dot(k.xy, key.xy));
  vec3 sclera = vec3(0.62, 0.585, 0.56) * mix(vec3(1.0), vec3(1.0, 0.74, 0.68),
      smoothstep(0.45, 0.95, open.y) * 0.8);
  float white = smoothstep(0.90, 1.07, r);
  vec3 result = mix(hue, sclera, white) * light * 0.44 * open.x;
  vec3 b = reflect(mirror, n);
  float f = 0.02 + 0.5 * (1.0 - max(dot(n, v), 0.0)) * (1.0 - max(dot(n, v), 0.0));
  result += mix(ground, sky, b.y * 0.5 + 0.5) * f * 0.5 * open.x;
  float glint = smoothstep(0.962, 0.988, dot(b, normalize(key * vec3(0.55, 0.36, 1.0)
      + vec3(0.0, 0.0, 0.25))));
  float second = smoothstep(0.975, 0.992, dot(b, normalize(fill * vec3(0.8, 0.6, 1.0)
      + vec3(0.0, 0.05, 0.4))));
  result += (key_colour * 0.60 * glint + fill_colour * 0.22 * second) * smoothstep(0.15, 0.5,
      open.x);
  colour = vec4(finish(result), 1.0);
}
"""

LASH_VERTEX = _HEAD + _SKINNING + """
in vec3 position, canon; in vec4 weights, extra; out vec3 along;
void main() {
  along = vec3(extra.zw, canon.x);
  gl_Position = camera * vec4(posed(position, weights), 1.0);
}
"""
LASH = _HEAD + _FINISH + """
in vec3 along; uniform vec3 lash, sky; uniform float makeup;
out vec4 colour;
void main() {
  float tip = along.x, upper = along.y * 0.5 + 0.5;
  float comb = 0.5 + 0.5 * sin(along.z * 520.0);
  float alpha = (1.0 - smoothstep(0.10, 1.0, tip + 0.35 * comb * tip)) * mix(0.18, 0.85, upper);
  colour = vec4(finish(lash * sky), alpha * (0.6 + 0.4 * makeup));
}
"""

BACK_VERTEX = _HEAD + """
in vec2 corner; out vec2 uv;
void main() { uv = corner * 0.5 + 0.5; gl_Position = vec4(corner, 0.9999, 1.0); }
"""
BACK = _HEAD + """
uniform sampler2D backdrop; in vec2 uv; out vec4 colour;
void main() { colour = vec4(texture(backdrop, uv).rgb, 1.0); }
"""

DEPTH_VERTEX = _HEAD + _SKINNING + """
in vec3 position; in vec4 weights;
void main() { gl_Position = camera * vec4(posed(position, weights), 1.0); }
"""
DEPTH = _HEAD + "void main() {}"
IDENTITY = _HEAD + """
uniform int base; out int number;
void main() { number = base + gl_PrimitiveID + 1; }
"""

CUT_VERTEX = _HEAD + _SKINNING + """
in vec3 position; in vec4 weights, uv; out float edge;
void main() { edge = uv.z; gl_Position = camera * vec4(posed(position, weights), 1.0); }
"""
IDENTITY_CUT = _HEAD + """
uniform int base; in float edge; out int number;
void main() { if (edge < 0.004) discard; number = base + gl_PrimitiveID + 1; }
"""

# uv: across, along, random, occlusion.
HAIR_VERTEX = _HEAD + _SKINNING + _LIGHT + """
in vec3 position, normal, tangent; in vec4 uv, weights, baked;
uniform vec3 hair;
out vec3 light, gloss; out vec2 at_strand, strand;
void main() {
  vec3 at = posed(position, weights), n = turned(normal, weights), t = turned(tangent, weights);
  vec3 v = normalize(eye - at);
  if (dot(n, v) < 0.0) n = normalize(n - 1.4 * dot(n, v) * v);
  float ao = uv.w, shadow = lit(baked);
  // Strands scatter light around their axis (Kajiya and Kay 1989).
  float tk = dot(t, key), tf = dot(t, fill), tr = dot(t, rim);
  float round_k = sqrt(max(0.0, 1.0 - tk * tk));
  float face_k = wrapped(dot(n, key), vec3(0.35)).x;
  light = key_colour * mix(face_k, round_k * face_k, 0.5) * mix(0.12, 1.0, shadow);
  light += fill_colour * wrapped(dot(n, fill), vec3(0.4)) * 0.9;
  light += rim_colour * wrapped(dot(n, rim), vec3(0.2)) * 0.7;
  light += ambient(n) * 1.1;
  light *= ao * (0.78 + 0.44 * uv.z);
  // Two highlights, shifted to the root and to the tip (Marschner et al. 2003).
  vec3 h = normalize(key + v);
  float shift = 0.18 * (uv.z - 0.5);
  float a = dot(normalize(t + n * (0.10 + shift)), h), b = dot(normalize(t - n * (0.16
      + shift)), h);
  float one = pow(max(0.0, 1.0 - a * a), 48.0), two = pow(max(0.0, 1.0 - b * b), 14.0);
  float front = smoothstep(-0.1, 0.5, dot(n, key)) * shadow * ao;
  vec3 hr = normalize(rim + v);
  float c = dot(t, hr), back = pow(max(0.0, 1.0 - c * c), 20.0) * smoothstep(-0.2, 0.4, dot(n,
      rim)) * ao;
  gloss = key_colour * one * front * 0.045 + rim_colour * back * 0.05;
  light = hair * (light * 0.42 + 0.9 * (key_colour * two * front * 0.55 + rim_colour * back
      * 0.35));
  strand = uv.xy;
  at_strand = vec2(uv.x * 0.25 + uv.z, uv.y * 0.5 + uv.z * 7.0);
  gl_Position = camera * vec4(at, 1.0);
}
"""
HAIR = _HEAD + _FINISH + """
in vec3 light, gloss; in vec2 at_strand;
uniform sampler2D strands;
out vec4 colour;
void main() {
  vec4 map = texture(strands, at_strand);
  colour = vec4(finish(light * (0.38 + 1.15 * map.r) + gloss * (0.2 + 1.4 * map.b)), 1.0);
}
"""
TIP = _HEAD + _FINISH + """
in vec3 light, gloss; in vec2 at_strand, strand;
uniform sampler2D strands;
out vec4 colour;
void main() {
  vec4 map = texture(strands, at_strand);
  float side = 1.0 - abs(strand.x * 2.0 - 1.0);
  float alpha = (side * 2.2 + map.g - 0.45) * (1.0 - smoothstep(0.55, 1.0, strand.y + 0.35
      * map.r));
  vec3 result = light * (0.38 + 1.15 * map.r) + gloss * (0.2 + 1.4 * map.b);
  colour = vec4(finish(result), clamp(alpha * 1.8, 0.0, 1.0));
}
"""

# uv: two coordinates in decimetres, distance to the edge, occlusion.
CLOTH_VERTEX = _HEAD + _SKINNING + _LIGHT + """
in vec3 position, normal, tangent; in vec4 uv, weights, baked;
uniform float sheen;
out vec3 light, glow; out vec3 place;
void main() {
  vec3 at = posed(position, weights), n = turned(normal, weights), v = normalize(eye - at);
  if (dot(n, v) < 0.0) n = -n;
  float shadow = lit(baked), ao = uv.w;
  light = key_colour * wrapped(dot(n, key), vec3(0.12)) * mix(0.04, 1.0, shadow);
  light += fill_colour * wrapped(dot(n, fill), vec3(0.25)) * (0.4 + 0.6 * ao);
  light += rim_colour * wrapped(dot(n, rim), vec3(0.05)) * 0.5 * ao;
  light += ambient(n) * ao * 1.15;
  light *= 0.5 + 0.5 * ao;
  float edge = 1.0 - max(dot(n, v), 0.0);
  glow = sheen * (ambient(n) * 0.10 + 0.05 * rim_colour * max(dot(n, rim), 0.0)) * edge * edge * ao;
  glow += sheen * sheen * sheen * key_colour * lobe(n, normalize(key + v), 0.03) * 0.02 * shadow;
  place = uv.xyz;
  gl_Position = camera * vec4(at, 1.0);
}
"""
CLOTH = _HEAD + _FINISH + """
in vec3 light, glow, place;
uniform vec3 cloth; uniform float pattern, weave, rib; uniform sampler2D strands;
out vec4 colour;
void main() {
  vec3 c = cloth;
  float thread = texture(strands, place.xy * 2.3).a;
  c *= 1.0 + weave * 0.5 * (thread - 0.5);
  if (rib > 0.5) c *= 0.86 + 0.20 * sin(place.x * 95.0);
  if (pattern > 2.5) {
    vec2 q = abs(fract(place.xy * 2.2) - 0.5);
    c *= 1.0 - 0.28 * (step(q.x, 0.12) + step(q.y, 0.12));
  } else if (pattern > 1.5) {
    c *= 0.80 + 0.42 * texture(strands, place.xy * 0.9).a;
  } else if (pattern > 0.5) {
    c = mix(c, c * 0.35 + 0.25, smoothstep(0.30, 0.24, abs(fract(place.y * 2.6) - 0.5)) * 0.7);
  }
  if (place.z < 0.004) discard;
  colour = vec4(finish(c * light * 0.42 + glow), 1.0);
}
"""

PROGRAMS = {
    "hair": (HAIR_VERTEX, HAIR), "tip": (HAIR_VERTEX, TIP), "cloth": (CLOTH_VERTEX, CLOTH),
    "skin": (SKIN_VERTEX, SKIN), "mouth": (MOUTH_VERTEX, MOUTH), "lash": (LASH_VERTEX, LASH),
    "eye": (EYE_VERTEX, EYE), "back": (BACK_VERTEX, BACK), "depth": (DEPTH_VERTEX, DEPTH),
    "identity": (DEPTH_VERTEX, IDENTITY), "identity_cut": (CUT_VERTEX, IDENTITY_CUT),
}  # fmt: skip
