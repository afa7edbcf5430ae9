"""Classify handwritten digits with PyTorch."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from hybridcore_torch import hybridize

torch.manual_seed(0)
images, classes = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(classes))
training, validation, test = random_split(data, [1237, 200, 360])
loader = DataLoader(training, batch_size=32, shuffle=True)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
criterion = nn.CrossEntropyLoss(reduction="none")
hybrid = hybridize(model, optimizer, loss_fn=lambda m, b: criterion(m(b[0]), b[1]), probe=[validation[:]])


@torch.no_grad()
def evaluate(part):
    inputs, targets = part[:]
    return criterion(model(inputs), targets).mean()


for epoch in range(10):
    for inputs, targets in loader:
        loss = criterion(model(inputs), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hybrid.advance(loss)
    print(f"epoch {epoch}: validation loss {evaluate(validation):.4f}")
print(hybrid.finish())
print(f"test loss {evaluate(test):.4f}")
