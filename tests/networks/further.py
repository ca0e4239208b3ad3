"""Further networks of our own: of other families, with other inputs, and with operations that are seldom seen."""

import torch
from torch import nn
from torch.nn import functional


class Perceiver(nn.Module):
    """Learned queries read the cells of an image by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.places = nn.Parameter(torch.randn(3, 8)), nn.Parameter(0.3 * torch.randn(36, 8))
        self.embed, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.latent = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        cells = self.norm(self.embed(x).flatten(2).mT + self.places)
        queries = self.queries.expand(len(x), -1, -1)
        return self.head(self.latent(queries + self.cross(queries, cells, cells)[0]).mean(1))


class Quantised(nn.Module):
    """The nearest of some codes, with a gradient that passes straight through, as in a VQ-VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.codes = nn.Embedding(7, 4)
        self.head = nn.Sequential(nn.Conv2d(4, 8, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x):
        found = self.encoder(x)
        distance = (found.movedim(1, -1).unsqueeze(-2) - self.codes.weight).square().sum(-1)
        nearest = self.codes(distance.argmin(-1)).movedim(-1, 1)
        return self.head(found + (nearest - found).detach())


class Conformer(nn.Module):
    """Attention and a convolution with a gate, over frames of a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.subsample, self.norm, self.second = nn.Conv1d(4, 8, 3, 2, 1), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.depthwise = nn.Conv1d(8, 16, 1), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.batch, self.mix = nn.BatchNorm1d(8), nn.Conv1d(8, 8, 1)
        self.feed = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
        self.out, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.subsample(x).mT
        x = x + 0.5 * self.feed(x)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        gated = functional.glu(self.gate(self.second(x).mT), dim=1)
        x = x + self.mix(functional.silu(self.batch(self.depthwise(gated)))).mT
        return self.head(self.out(x).mean(1))


class Towers(nn.Module):
    """A list of an image and the ids of a text: their likeness, dimension by dimension, beside prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
        )
        self.embedding, self.text = nn.Embedding(11, 5), nn.Linear(5, 5)
        self.prompts = nn.Parameter(torch.randn(3, 5))

    def forward(self, streams):
        image, ids = streams
        one = functional.normalize(self.image(image), dim=-1)
        other = functional.normalize(self.text(self.embedding(ids).mean(1)), dim=-1)
        return (one * other).unsqueeze(1).mul(functional.normalize(self.prompts, dim=-1)).sum(2)


class Experts(nn.Module):
    """The two best of four experts for every token, gathered and put back by index."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.router = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        rows = self.up(x.mT).flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).topk(2, -1)
        weights, total = weights / weights.sum(-1, keepdim=True), torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, slot = torch.where(chosen == number)
            if len(row):
                total.index_add_(0, row, expert(rows[row]) * weights[row, slot, None])
        return self.head(self.norm((rows + total).unflatten(0, (len(x), -1))).mean(1))


class StateSpace(nn.Module):
    """A selective scan, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = nn.Linear(3, 16), nn.Conv1d(8, 8, 3, padding=2, groups=8)
        self.step, self.gates, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.decay, self.skip = nn.Parameter(torch.rand(8, 4)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        values, gate = self.inner(x.mT).chunk(2, -1)
        values = functional.silu(self.conv(values.mT)[..., : x.shape[2]].mT)
        step = functional.softplus(self.step(values)).unsqueeze(3)
        enter, leave = self.gates(values).unsqueeze(2).chunk(2, -1)
        state, found = values.new_zeros(len(x), 8, 4), []
        for k in range(values.shape[1]):
            state = torch.exp(-step[:, k] * self.decay) * state + step[:, k] * enter[:, k] * values[:, k].unsqueeze(2)
            found.append((state * leave[:, k]).sum(-1) + self.skip * values[:, k])
        return self.out((torch.stack(found, 1) * functional.silu(gate)).mean(1))


class Points(nn.Module):
    """Points [N, P, 3] that are turned by what they have in common, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.turn = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 9)
        self.up, self.wide, self.norm = nn.Linear(3, 8), nn.Linear(8, 12), nn.LayerNorm(8)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        turn = self.turn(self.first(x).amax(1)).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        return self.head(self.wide(self.norm(self.up(torch.bmm(x, turn)))).relu().max(1).values)


class Exits(nn.Module):
    """Logits at two depths, as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(6, 3)])

    def forward(self, x):
        early = self.early(x)
        maps = (early, self.late(early))
        return [head(part.mean((2, 3))) for head, part in zip(self.heads, maps, strict=True)]


class Fourier(nn.Module):
    """A layer that acts on the spectrum, by complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.around, self.out = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)
        self.real, self.imaginary = (nn.Parameter(0.3 * torch.randn(4, 4, 3)) for _ in range(2))

    def forward(self, x):
        lifted = self.lift(x)
        spectrum = torch.fft.rfft(lifted)
        low = torch.einsum("nif,iof->nof", spectrum[..., :3], torch.complex(self.real, self.imaginary))
        back = torch.fft.irfft(functional.pad(low, (0, spectrum.shape[2] - 3)), n=x.shape[2])
        return self.out(functional.gelu(back + self.around(lifted)).mean(2))


class Graph(nn.Module):
    """Convolutions over nodes [N, nodes, C], with the edges of every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x, edges):
        edges = edges / edges.sum(2, keepdim=True)
        hidden = self.norm(edges @ self.first(edges @ x).relu())
        return self.out(self.second(hidden).relu().mean(1))


class Packed(nn.Module):
    """Time steps [N, T, C] of different lengths, packed for an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.lstm, self.out = nn.Linear(3, 5), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.up(x), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.lstm(packed)[1][0][-1])


class Generated(nn.Module):
    """A convolution by kernels that are made of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.mix, self.out = nn.Linear(3, 4 * 3 * 9), nn.Conv2d(4, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        samples, size = len(x), x.shape[2:]
        kernels = self.kernels(x.mean((2, 3))).view(samples * 4, 3, 3, 3)
        maps = functional.conv2d(x.reshape(1, samples * 3, *size), kernels, padding=1, groups=samples)
        return self.out(self.mix(maps.view(samples, 4, *size).relu()).relu().mean((2, 3)))
