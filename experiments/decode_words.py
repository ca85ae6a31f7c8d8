"""The text of the page of the decoding study; every number on that page comes from cells."""

HEAD = """# Decodable networks: what they cost, and what their uncertainty is worth

A classifier and one generator are trained together, so that the activations of every layer turn back into inputs; decodings are
classified again, which makes one network many (ReDecNN), after Wu, Goodman and Ermon, "Improving Compositionality of Neural Networks by
Decoding Representations to Inputs" (NeurIPS 2021). The paper compares methods by one score, the entropy of hard votes. Here every method is
seen through several scores, beside usual detectors and attacks that know the score. Replicates are trained networks, paired by
initial weights; ± is half of the 95 % Student interval over networks.
"""

ABOUT = """## How to read it

- *Votes*: the paper's score, the entropy of the members' hard votes; 0 for most images, ties count one half. *Mean entropy*: the entropy of the members'
  mean probability. *Largest probability* (1 minus it), *entropy* and *energy of one*: of the plain classifier, or of the mean for an ensemble.
  *Residual*: the error of decodings. *Flips*: the share of layers whose decoding is classified otherwise. Larger is more suspicious for all.
- Members: of ReDecNN and DecNN all paths of length 1, one a layer; of `ReDecNN D=2` 30 paths of length 2, drawn once; of MC-dropout 20 masks, drawn once; of the
  ensemble three networks, of which one is the plain network of that replicate. Answers are those of the plain classifier at depth 0; of
  MC-dropout and the ensemble those of the mean probability. The paper does not say whose answers its accuracies are.
- The paper trains on whole data sets, with unknown settings; here 12,000 (perceptron) or 10,000 images (residual network) are seen. *Difference* is ours minus the
  paper's, of different recipes: it says whether we are in its neighbourhood, not which is right.
- Settings: discount 0.8 and weight 10 on the mean squared error, the package's defaults; dropout 0.2 after each block; Adam 0.001 with a cosine
  for every method. None was tuned, on any images: epochs and sizes are what the time at hand allows. 2,000 validation images, training images that no
  network was trained on, are for temperature scaling. A larger rate of dropout would cost accuracy and make its votes differ more.
- Far sets: the test images of the other data set, CIFAR-10 in grey at 28 pixels, noise, inverted test images. Near: means of two test images of different
  classes. The paper's CelebA column has no counterpart here.
- Corruptions: 14 standard types at severity 5 with the constants for small images, 500 test images; not those of MNIST-C.
- FGSM and PGD attack the classifier at depth 0 (or the mean of an ensemble). AUROC is over all attacked images, fooled or not. The adaptive attack follows the
  gradient of classifier and score together; it is one attack, and what withstands it is not thereby robust.
- ECE: 15 bins of equal width, in percent; *if perfect* is what a perfectly calibrated network would show on as many images. *Scaled*: one temperature fitted on
  the validation images.
- After the claims were registered and before the first cell, a plain network and a ReDecNN of a seed of no cell went through all measures on MNIST, and networks of
  one or two epochs through those of fairness, to time them and to see that the code runs. Their figures were seen; nothing was changed after them.
- Composition: the frozen model of `ReDecNN + residual` is a ResNet-8 of 4 epochs. It was meant to be the stronger one and is weaker than the perceptron, so what
  it does is no sign of what a stronger model does; that of `ReDecNN + stronger residual` had 20 epochs. The paper's figures for a stronger model stand beside the latter.
- Fairness: the attribute model is frozen, of one block, trained on inputs. A fresh probe is a linear one fitted after training; it, not the frozen model, says whether
  the attribute is gone. The paper's figures are of CelebA: F1 gaps (points) 6.7 plain, 6.5 ReDecNN, 2.7 constrained; AP gaps 9.2, 7.9, 1.1.
"""

NOT_RUN = """## What was not run

- Whole training sets, five replicates, composition on Fashion-MNIST and on the residual network, depth 2 elsewhere than on MNIST: `--preset full`.
- CelebA, AudioMNIST and Fluent Speech Commands, which were not at hand; Bayes by backpropagation, which the paper has among its baselines; SWAG and Laplace.
- A search over weight, discount and dropout rate for each method; attacks other than FGSM, PGD and the adaptive one.
"""
