"""GLSL of gl.py: the visibility pass of kernels.py and the shading of shading.py, formula by formula.

Sizes, frames and the meaning of a face's `surface` are those of kernels.py, shading.py and facets.py. Row 0 of every target is
the upper row of the picture, so a face that is counter-clockwise from outside is clockwise in a target.
"""

from __future__ import annotations

from robopolicy.sim.textures import TEXTURE_SIZE

VERSION = "#version 430\n"

MESHES = """
uniform sampler2D in_cam;  // row k: the three rows of T_cam_mesh of mesh k; not every driver lets vertices read a buffer
vec4 placed(int row, int mesh) { return texelFetch(in_cam, ivec2(row, mesh), 0); }
"""

PLACE = f"""{VERSION}{MESHES}
uniform mat4 projection;  // from the camera's frame
in vec3 point;
in int mesh;
void main() {{
    vec4 p = vec4(point, 1.0);
    gl_Position = projection * vec4(dot(placed(0, mesh), p), dot(placed(1, mesh), p), dot(placed(2, mesh), p), 1.0);
}}
"""

SEE = f"""{VERSION}
out vec2 seen;  // nearness 1 / z, index of the face + 1; 0 where there is none
void main() {{ seen = vec2(gl_FragCoord.w, float(gl_PrimitiveID + 1)); }}
"""

CAST = f"""{VERSION}
void main() {{}}
"""

COVER = f"""{VERSION}
void main() {{ gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }}
"""

_RESOLVE = """
layout(std430, binding = 0) readonly buffer Planes { vec4 plane[]; };  // unit normal of every face, index of its mesh
layout(std430, binding = 1) readonly buffer Surfaces { vec4 surface[]; };  // six for every face
layout(std430, binding = 2) readonly buffer Looks { vec4 look[]; };  // two for every mesh: rgb, texture; segmentation
layout(std140, binding = 0) uniform Picture {
    vec4 base_from_cam[3];
    vec4 map_from_cam[3];  // column, row and depth in the shadow map
    vec4 light;  // towards it, in the camera's frame; w: the part of it that points up
    vec4 lens;  // focal length and principal point (px), near (m)
    vec4 range;  // far (m), columns and rows of the shadow map, side of its texels (m; 0: no shadows)
    vec4 table;  // x, height, half side (m), textures per metre
    vec4 table_look;  // rgb, texture
    vec4 background_look;
    vec4 lamp;  // rgb, how dark a shadow is
    vec4 shares;  // ambient, diffuse, specular; background textures per radian
};
uniform sampler2D coarse;  // what SEE has drawn, one sample a pixel
layout(location = 0) out vec4 colour;  // rgb, segmentation / 255
layout(location = 1) out float depth;

const int NOTHING = -1, TABLE = -2;
const float BACKGROUND_ID = 0.0, TABLE_ID = 1.0;

struct Hit { float nearness; int face; };

vec3 ray(vec2 pixel) { return vec3((pixel - lens.yz) / lens.x, 1.0); }

vec3 to_base(vec3 d) { return vec3(dot(base_from_cam[0].xyz, d), dot(base_from_cam[1].xyz, d), dot(base_from_cam[2].xyz, d)); }

float above() { return table.y - base_from_cam[2].w; }

Hit hit(sampler2D drawn, ivec2 at, vec2 pixel) {  // with the table, which is not drawn
    vec2 found = texelFetch(drawn, at, 0).rg;
    Hit h = Hit(found.r, int(found.g) - 1);
    vec3 d = to_base(ray(pixel));
    float t = above() == 0.0 ? 0.0 : d.z / above();
    vec2 eye = vec2(base_from_cam[0].w - table.x, base_from_cam[1].w);
    if (t > h.nearness && t * lens.w < 1.0 && all(lessThanEqual(abs(eye * t + d.xy), vec2(table.z * t)))) h = Hit(t, TABLE);
    if (h.face == NOTHING || h.nearness * range.x < 1.0) h = Hit(0.0, NOTHING);
    return h;
}

int mesh_of(int face) { return int(plane[face].w); }

void resolve(ivec2 at) {
    Hit h = hit(coarse, at, gl_FragCoord.xy);
    depth = h.face == NOTHING ? 0.0 : 1.0 / h.nearness;
    float id = h.face == NOTHING ? BACKGROUND_ID : TABLE_ID;
    if (h.face >= 0) id = look[2 * mesh_of(h.face) + 1].x;
    colour = vec4(0.0, 0.0, 0.0, id / 255.0);
}
"""

_SHADE = """
uniform sampler2DArray bank;
uniform sampler2D shadow_map;  // depth from the light

vec3 textured(float layer, vec2 uv, float footprint) {  // footprint: side of a pixel in texels of the finest level
    footprint = clamp(footprint, 1.0, TEXTURE_SIZE / 2.0);
    float level = floor(log2(footprint));
    return textureLod(bank, vec3(uv, layer), level + footprint * exp2(-level) - 1.0).rgb;
}

float sunlight(vec3 at) {  // share of the light that arrives: percentage-closer filtering
    ivec2 first = ivec2(floor(at.xy)) - 1;
    if (any(lessThan(first, ivec2(0))) || any(greaterThanEqual(first + 2, ivec2(range.yz)))) return 1.0;
    vec2 part = at.xy - vec2(first + 1);
    float total = 0.0, deep = min(at.z, 1.0);
    for (int j = 0; j < 3; j++) {
        vec3 lit;
        for (int i = 0; i < 3; i++) lit[i] = step(deep, texelFetch(shadow_map, first + ivec2(i, j), 0).r);
        total += (lit.x + lit.y + part.x * (lit.z - lit.x)) * (j == 0 ? 1.0 - part.y : j == 2 ? part.y : 1.0);
    }
    return 0.25 * total;
}

vec3 shade(Hit h, vec2 pixel, vec2 middle) {  // at `pixel`; the table and the background at the middle of it
    vec3 d = ray(h.face >= 0 ? pixel : middle), seen = to_base(d), up = base_from_cam[2].xyz, normal = vec3(0.0), at = d;
    vec4 paint = background_look;
    vec2 uv;
    float footprint, push = 0.0, rise = light.w;
    if (h.face >= 0) {
        int k = mesh_of(h.face), s = 6 * h.face;
        vec4 x = placed(0, k), y = placed(1, k), z = placed(2, k);
        at = d / h.nearness;
        vec4 p = vec4(mat3(x.xyz, y.xyz, z.xyz) * (at - vec3(x.w, y.w, z.w)), 1.0);  // in the mesh's frame
        vec3 n = vec3(dot(surface[s], p), dot(surface[s + 1], p), dot(surface[s + 2], p));
        n *= inversesqrt(max(dot(n, n), 1e-12));
        normal = vec3(dot(x.xyz, n), dot(y.xyz, n), dot(z.xyz, n));
        paint = look[2 * k];
        uv = vec2(dot(surface[s + 3], p), dot(surface[s + 4], p));
        footprint = at.z * surface[s + 5].x;
        float towards = dot(light.xyz, normal);
        push = range.w * (0.5 + 2.0 * sqrt(max(1.0 - towards * towards, 0.0)));
    } else if (h.face == TABLE) {
        at = d * (above() / seen.z);
        normal = above() < 0.0 ? up : -up;
        paint = table_look;
        uv = (seen.xy * at.z + vec2(base_from_cam[0].w - table.x, base_from_cam[1].w)) * table.w;
        footprint = at.z * table.w;
    } else {
        float level = length(seen.xy), far = length(seen);
        uv = shares.w * vec2(atan(seen.y, seen.x), -seen.z / far);
        footprint = shares.w * far / max(level, 1e-12);
    }
    if (paint.a >= 0.0) paint.rgb *= textured(paint.a, uv, footprint * TEXTURE_SIZE / lens.x);
    if (h.face == NOTHING) return paint.rgb;
    float towards = dot(light.xyz, normal);
    float brightness = shares.x * (0.75 + 0.35 * (2.0 * dot(up, normal) * rise - towards)), highlight = 0.0;
    if (towards > 0.0) {
        float sun = 1.0;
        if (range.w > 0.0) {
            vec4 p = vec4(at + push * normal, 1.0);
            sun -= lamp.a * (1.0 - sunlight(vec3(dot(map_from_cam[0], p), dot(map_from_cam[1], p), dot(map_from_cam[2], p))));
        }
        brightness += shares.y * towards * sun;
        vec3 way = normalize(d);
        float cosine = (towards - dot(normal, way)) * inversesqrt(max(2.0 - 2.0 * dot(light.xyz, way), 1e-12));
        highlight = cosine > 0.6 ? shares.z * pow(cosine, 24.0) * sun : 0.0;
    }
    return (paint.rgb * brightness + highlight) * lamp.rgb;
}
"""

_ONE_SAMPLE = """
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    resolve(at);
    colour.rgb = shade(hit(coarse, at, gl_FragCoord.xy), gl_FragCoord.xy, gl_FragCoord.xy);
}
"""

_FOUR_SAMPLES = """
uniform sampler2D fine;  // what SEE has drawn, 2 x 2 samples a pixel

bool same(int f, int g) {  // whether two samples show one surface
    if (f == g) return true;
    return f >= 0 && g >= 0 && mesh_of(f) == mesh_of(g) && dot(plane[f].xyz, plane[g].xyz) > 0.9;
}

void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    resolve(at);
    Hit hits[4];
    for (int i = 0; i < 4; i++) {
        ivec2 corner = ivec2(i & 1, i >> 1);
        hits[i] = hit(fine, 2 * at + corner, vec2(at) + 0.25 + 0.5 * vec2(corner));
    }
    int pending = 15;  // bit i: sample i has no colour yet
    while (pending != 0) {
        Hit group = Hit(0.0, -3);
        vec3 sum = vec3(0.0);  // of the group: column, row, samples
        for (int i = 0; i < 4; i++) {
            if ((pending >> i & 1) == 0) continue;
            if (group.face == -3) group.face = hits[i].face;
            if (!same(group.face, hits[i].face)) continue;
            pending -= 1 << i;
            group.nearness += hits[i].nearness;
            sum += vec3(i & 1, i >> 1, 1);
        }
        group.nearness /= sum.z;
        colour.rgb += 0.25 * sum.z * shade(group, vec2(at) + 0.25 + 0.5 * sum.xy / sum.z, gl_FragCoord.xy);
    }
}
"""

_HEAD = f"{VERSION}const float TEXTURE_SIZE = {TEXTURE_SIZE}.0;\n{MESHES}{_RESOLVE}"
PAINT = {
    0: f"{_HEAD}void main() {{ resolve(ivec2(gl_FragCoord.xy)); }}\n",  # no colour
    1: f"{_HEAD}{_SHADE}{_ONE_SAMPLE}",
    2: f"{_HEAD}{_SHADE}{_FOUR_SAMPLES}",
}
