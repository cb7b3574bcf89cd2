"""The packed transformer in plain fp32 PyTorch, from a state dict; any history group may be missing.

One sample at a time, everything recomputed, scores as matrices: written to be read against the description of the
model. ``w`` maps checkpoint names to tensors.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

Weights = Mapping[str, Tensor]
Inputs = Mapping[str, Any]  # keyword arguments of diffusers' class; a history group may be None

GROUPS = ("clean", "history_2x", "history_4x")


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over [N, heads, d]; returns [N, heads * d]."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1)


def sinusoid(value: Tensor) -> Tensor:
    """256 features of a scalar: cosines, then sines."""
    angles = value.float() * torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
    return torch.cat([angles.cos(), angles.sin()])


def two_layers(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.linear_2", silu(linear(w, f"{name}.linear_1", x)))


def rope_table(frames: Tensor, height: int, width: int, config: Mapping[str, Any]) -> Tensor:
    """Complex rotations [head_dim / 2, T, height, width] at full resolution."""
    axes = (frames.float(), torch.arange(height).float(), torch.arange(width).float())
    grids = torch.meshgrid(*axes, indexing="ij")
    phases = []
    for grid, dim in zip(grids, config["rope_axes_dim"], strict=True):
        frequencies = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
        phases.append(frequencies[:, None, None, None] * grid)
    phase = torch.cat(phases)
    return torch.complex(phase.cos(), phase.sin())


def pad_far_end(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Repeat the last frame, row and column of [C, T, Y, X] up to multiples of the kernel."""
    for dim, size in zip((1, 2, 3), kernel, strict=True):
        missing = -x.shape[dim] % size
        x = torch.cat([x, *[x.narrow(dim, x.shape[dim] - 1, 1)] * missing], dim)
    return x


def average_pool(x: Tensor, size: int) -> Tensor:
    """Mean over cubes of ``size`` in [C, T, Y, X]."""
    x = pad_far_end(x, (size, size, size))
    cubes = x.unflatten(3, (-1, size)).unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return cubes.mean((2, 4, 6))


def patchify(w: Weights, name: str, latents: Tensor) -> Tensor:
    """Tokens [N, D] of latents [C, T, Y, X]: one product per patch."""
    weight = w[f"{name}.weight"]
    pt, py, px = weight.shape[2:]
    x = pad_far_end(latents, (pt, py, px))
    patches = (
        x.unflatten(3, (-1, px)).unflatten(2, (-1, py)).unflatten(1, (-1, pt))
    )  # [C, T, pt, Y, py, X, px]
    patches = patches.permute(1, 3, 5, 0, 2, 4, 6).flatten(3).flatten(0, 2)
    return patches @ weight.flatten(1).T + w[f"{name}.bias"]


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the first rows of [N, heads, d] by complex factors [M, d / 2]; the other rows stay."""
    pairs = torch.view_as_complex(x[: len(rope)].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * rope[:, None]).flatten(-2)
    return torch.cat([turned, x[len(rope) :]])


def refine_text(
    w: Weights, text: Tensor, valid: Tensor, timestep: Tensor, config: Mapping[str, Any]
) -> Tensor:
    """Token refiner on [L, E]; padding rows of the result mean nothing."""
    name = "context_embedder"
    pooled = text[valid].mean(0)
    temb = two_layers(w, f"{name}.time_text_embed.timestep_embedder", sinusoid(timestep))
    temb = temb + two_layers(w, f"{name}.time_text_embed.text_embedder", pooled)
    mask = valid[:, None] & valid[None, :]
    mask[:, 0] = True
    x = linear(w, f"{name}.proj_in", text)
    for i in range(config["num_refiner_layers"]):
        block = f"{name}.token_refiner.refiner_blocks.{i}"
        gate_attention, gate_mlp = linear(w, f"{block}.norm_out.linear", silu(temb)).chunk(2)
        n = layer_norm(x) * w[f"{block}.norm1.weight"] + w[f"{block}.norm1.bias"]
        q, k, v = (
            linear(w, f"{block}.attn.to_{letter}", n).unflatten(-1, (config["num_attention_heads"], -1))
            for letter in "qkv"
        )
        x = x + gate_attention * linear(w, f"{block}.attn.to_out.0", attend(q, k, v, mask))
        n = layer_norm(x) * w[f"{block}.norm2.weight"] + w[f"{block}.norm2.bias"]
        x = x + gate_mlp * linear(w, f"{block}.ff.net.2", silu(linear(w, f"{block}.ff.net.0.proj", n)))
    return x


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.net.2", gelu(linear(w, f"{name}.net.0.proj", x), approximate="tanh"))


def double_block(
    w: Weights, name: str, video: Tensor, text: Tensor, temb: Tensor, rope: Tensor
) -> tuple[Tensor, Tensor]:
    """Two streams with their own weights and one attention."""
    heads = w[f"{name}.attn.to_q.weight"].shape[0] // w[f"{name}.attn.norm_q.weight"].shape[0]
    modulation = linear(w, f"{name}.norm1.linear", silu(temb)).chunk(6)
    modulation_text = linear(w, f"{name}.norm1_context.linear", silu(temb)).chunk(6)

    def project(linear_name: str, x: Tensor) -> Tensor:
        return linear(w, f"{name}.attn.{linear_name}", x).unflatten(-1, (heads, -1))

    n = layer_norm(video) * (1 + modulation[1]) + modulation[0]
    n_text = layer_norm(text) * (1 + modulation_text[1]) + modulation_text[0]
    q = rotate(rms_norm(w, f"{name}.attn.norm_q", project("to_q", n)), rope)
    k = rotate(rms_norm(w, f"{name}.attn.norm_k", project("to_k", n)), rope)
    q_text = rms_norm(w, f"{name}.attn.norm_added_q", project("add_q_proj", n_text))
    k_text = rms_norm(w, f"{name}.attn.norm_added_k", project("add_k_proj", n_text))
    v = torch.cat([project("to_v", n), project("add_v_proj", n_text)])
    out = attend(torch.cat([q, q_text]), torch.cat([k, k_text]), v)

    video = video + modulation[2] * linear(w, f"{name}.attn.to_out.0", out[: len(video)])
    text = text + modulation_text[2] * linear(w, f"{name}.attn.to_add_out", out[len(video) :])
    video = video + modulation[5] * mlp(
        w, f"{name}.ff", layer_norm(video) * (1 + modulation[4]) + modulation[3]
    )
    n_text = layer_norm(text) * (1 + modulation_text[4]) + modulation_text[3]
    return video, text + modulation_text[5] * mlp(w, f"{name}.ff_context", n_text)


def single_block(w: Weights, name: str, x: Tensor, temb: Tensor, rope: Tensor) -> Tensor:
    """One stream; attention and MLP side by side."""
    heads = w[f"{name}.attn.to_q.weight"].shape[0] // w[f"{name}.attn.norm_q.weight"].shape[0]
    shift, scale, gate = linear(w, f"{name}.norm.linear", silu(temb)).chunk(3)
    n = layer_norm(x) * (1 + scale) + shift
    q, k, v = (linear(w, f"{name}.attn.to_{letter}", n).unflatten(-1, (heads, -1)) for letter in "qkv")
    q = rotate(rms_norm(w, f"{name}.attn.norm_q", q), rope)
    k = rotate(rms_norm(w, f"{name}.attn.norm_k", k), rope)
    wide = gelu(linear(w, f"{name}.proj_mlp", n), approximate="tanh")
    return x + gate * linear(w, f"{name}.proj_out", torch.cat([attend(q, k, v), wide], -1))


def pack(w: Weights, sample: Inputs, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens [N, D] and rotations [N, d / 2] of 4x, 2x, 1x and noisy latents, as far as they are there."""
    noisy = sample["hidden_states"]
    frames = sample["indices_latents"]
    frames = torch.arange(noisy.shape[1]) if frames is None else frames
    height, width = noisy.shape[2] // 2, noisy.shape[3] // 2
    tokens = [patchify(w, "x_embedder.proj", noisy)]
    rope = [rope_table(frames, height, width, config)]
    groups = (("clean", "proj", 1), ("history_2x", "proj_2x", 2), ("history_4x", "proj_4x", 4))
    for group, name, size in groups:
        latents, indices = sample[f"latents_{group}"], sample[f"indices_latents_{group}"]
        if latents is None or indices is None:
            continue
        table = rope_table(indices, height, width, config)
        pooled = torch.complex(average_pool(table.real, size), average_pool(table.imag, size))
        tokens.insert(0, patchify(w, f"clean_x_embedder.{name}", latents))
        rope.insert(0, pooled)
    return torch.cat(tokens), torch.cat([table.flatten(1).T for table in rope])


def unpatchify(tokens: Tensor, latent_shape: torch.Size) -> Tensor:
    """Latents [C, T, Y, X] of tokens [N, C * 4]."""
    _, frames, height, width = latent_shape
    x = tokens.view(frames, height // 2, width // 2, -1, 2, 2)
    return x.permute(3, 0, 1, 4, 2, 5).reshape(-1, frames, height, width)


def sample_forward(w: Weights, config: Mapping[str, Any], sample: Inputs) -> Tensor:
    """Velocity [C, T, Y, X] of one sample; arguments as below without the batch dimension."""
    text, mask = sample["encoder_hidden_states"], sample["encoder_attention_mask"]
    timestep, noisy = sample["timestep"], sample["hidden_states"]
    temb = two_layers(w, "time_text_embed.timestep_embedder", sinusoid(timestep))
    temb = temb + two_layers(w, "time_text_embed.text_embedder", sample["pooled_projections"])
    if config["guidance_embeds"]:
        temb = temb + two_layers(w, "time_text_embed.guidance_embedder", sinusoid(sample["guidance"]))

    refined = refine_text(w, text, mask.bool(), timestep, config)[: int(mask.sum())]
    image = linear(w, "image_projection.down", silu(linear(w, "image_projection.up", sample["image_embeds"])))
    context = torch.cat([image, refined])
    video, rope = pack(w, sample, config)
    for i in range(config["num_layers"]):
        video, context = double_block(w, f"transformer_blocks.{i}", video, context, temb, rope)
    x = torch.cat([video, context])
    for i in range(config["num_single_layers"]):
        x = single_block(w, f"single_transformer_blocks.{i}", x, temb, rope)

    num_noisy = noisy[0].numel() // 4
    noisy_tokens = x[len(video) - num_noisy : len(video)]
    scale, shift = linear(w, "norm_out.linear", silu(temb)).chunk(2)
    return unpatchify(linear(w, "proj_out", layer_norm(noisy_tokens) * (1 + scale) + shift), noisy.shape)


def plain_forward(w: Weights, config: Mapping[str, Any], **inputs: Tensor | None) -> Tensor:
    """Velocity [B, C, T, Y, X]; takes the keyword arguments of diffusers' class, history groups may be absent."""
    optional = [f"{kind}_{group}" for kind in ("latents", "indices_latents") for group in GROUPS]
    inputs = dict.fromkeys(["guidance", "indices_latents", *optional]) | inputs
    outputs = []
    for i in range(len(inputs["hidden_states"])):
        sample = {
            name: value if value is None or name.startswith("indices") else value[i]
            for name, value in inputs.items()
        }
        outputs.append(sample_forward(w, config, sample))
    return torch.stack(outputs)
